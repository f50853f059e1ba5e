/* SPDX-License-Identifier: Apache-2.0 */
/* What each sector of the disk may hold, now and after a crash: see test-sim-model.h. */
#include "drivers/qcow2/test-sim-model.h"

#include "base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void model_init(Model *m, uint64_t capacity, uint64_t size)
{
    *m = (Model){.capacity = capacity, .size = size, .other_size = size, .now = 1};
    m->sectors = mem_zalloc(capacity * sizeof(*m->sectors));
    for (uint64_t i = 0; i < capacity; i++)
        model_set_initial(m, i, 0);
}

void model_done(Model *m)
{
    free(m->sectors);
    free(m->kept);
}

void model_set_initial(Model *m, uint64_t sector, uint64_t value)
{
    m->sectors[sector].versions[0] =
        (Version){.value = value, .sure = true, .outlives = true, .durable = true};
    m->sectors[sector].count = 1;
}

/* ---- Values ---- */

uint64_t model_keep(Model *m, const uint8_t *contents)
{
    VEC_GROW(m->kept, m->kept_count, m->kept_capacity);
    memcpy(m->kept[m->kept_count], contents, SECTOR);
    return VALUE_KEPT | m->kept_count++;
}

void model_fill(const Model *m, uint64_t value, uint8_t *contents)
{
    if (value & VALUE_KEPT) {
        memcpy(contents, m->kept[value & ~VALUE_KEPT], SECTOR);
        return;
    }
    for (unsigned i = 0; i < SECTOR; i += sizeof(value))
        memcpy(contents + i, &value, sizeof(value));
}

static uint64_t value_of(Model *m, const uint8_t *contents)
{
    uint64_t word;

    memcpy(&word, contents, sizeof(word));
    if ((word & VALUE_KEPT) || memcmp(contents, contents + sizeof(word), SECTOR - sizeof(word)))
        return model_keep(m, contents);
    return word;
}

/* Bytes [from, to) of a sector are those of value; data is what is at from. */
static bool is_value(const Model *m, uint64_t value, unsigned from, unsigned to, const uint8_t *data)
{
    uint8_t contents[SECTOR];

    model_fill(m, value, contents);
    return memcmp(contents + from, data, to - from) == 0;
}

/* ---- Versions ---- */

static bool is_past(const Version *v, const Version *later)
{
    return v->end < later->start;
}

/* Whether a read that began then may return v. */
static bool is_readable(const Sector *s, const Version *v, uint64_t began)
{
    for (unsigned i = 0; i < s->count; i++) {
        const Version *w = &s->versions[i];

        if (w->sure && w->end < began && is_past(v, w))
            return false;
    }
    return true;
}

static bool survives(const Sector *s, const Version *v, bool power)
{
    for (unsigned i = 0; i < s->count; i++) {
        const Version *w = &s->versions[i];

        if ((w->durable || (!power && w->sure && w->outlives)) && is_past(v, w))
            return false;
    }
    return true;
}

/* Forgets versions that nothing can bring back. */
static void prune(const Model *m, Sector *s)
{
    uint64_t oldest = m->reads ? m->reads_since : m->now;
    unsigned kept = 0;

    for (unsigned i = 0; i < s->count; i++) {
        Version v = s->versions[i];
        bool gone = false;

        for (unsigned k = 0; k < s->count && !gone; k++)
            gone = s->versions[k].durable && s->versions[k].end < oldest && is_past(&v, &s->versions[k]);
        if (!gone)
            s->versions[kept++] = v;
    }
    s->count = kept;
}

static bool has_room(const Model *m, Sector *s)
{
    if (s->count == MAX_VERSIONS)
        prune(m, s);
    return s->count < MAX_VERSIONS;
}

/* The one value that a sector is known to hold. */
static bool is_settled(const Model *m, const Sector *s, uint64_t *ret_value)
{
    bool found = false;

    for (unsigned i = 0; i < s->count; i++) {
        const Version *v = &s->versions[i];

        if (v->end == NEVER)
            return false;
        if (!is_readable(s, v, m->now))
            continue;
        if (found && v->value != *ret_value)
            return false;
        *ret_value = v->value;
        found = true;
    }
    return found;
}

/* ---- Changes ---- */

static bool may_change(const Model *m, uint64_t sector, bool part)
{
    Sector *s = &m->sectors[sector];
    uint64_t value;

    return !s->exclusive && has_room(m, s) && (!part || is_settled(m, s, &value));
}

/* What sector will hold when bytes [offset, end) are data. */
static uint64_t changed_value(Model *m, uint64_t sector, uint64_t offset, uint64_t end, const uint8_t *data)
{
    uint64_t at = sector * SECTOR, from = MAX(offset, at), to = MIN(end, at + SECTOR), old = 0;
    uint8_t contents[SECTOR] = {0};

    if (to - from < SECTOR) {
        (void)is_settled(m, &m->sectors[sector], &old);
        model_fill(m, old, contents);
    }
    if (data)
        memcpy(contents + (from - at), data + (from - offset), to - from);
    else
        memset(contents + (from - at), 0, to - from);
    return value_of(m, contents);
}

bool model_begin(
    Model *m, uint64_t offset, uint64_t bytes, const uint8_t *data, bool outlives, Change *ret_change)
{
    uint64_t end = offset + bytes, first = offset / SECTOR, last = (end - 1) / SECTOR;
    bool head = offset % SECTOR || (first == last && end % SECTOR), tail = end % SECTOR && last > first;

    for (uint64_t i = first; i <= last; i++)
        if (!may_change(m, i, (i == first && head) || (i == last && tail)))
            return false;
    *ret_change =
        (Change){.first = first, .count = last - first + 1, .start = ++m->now, .edges = {head, tail}};
    for (uint64_t i = first; i <= last; i++) {
        Version v = {.value = changed_value(m, i, offset, end, data),
            .start = m->now,
            .end = NEVER,
            .outlives = outlives};

        m->sectors[i].versions[m->sectors[i].count++] = v;
    }
    m->sectors[first].exclusive |= head;
    m->sectors[last].exclusive |= tail;
    return true;
}

void model_end(Model *m, const Change *change, bool sure, bool durable)
{
    m->now++;
    for (uint64_t i = change->first; i < change->first + change->count; i++) {
        Sector *s = &m->sectors[i];

        for (unsigned k = 0; k < s->count; k++) {
            if (s->versions[k].start != change->start || s->versions[k].end != NEVER)
                continue;
            s->versions[k].end = m->now;
            s->versions[k].sure = sure;
            s->versions[k].durable = durable;
        }
    }
    if (change->edges[0])
        m->sectors[change->first].exclusive = false;
    if (change->edges[1])
        m->sectors[change->first + change->count - 1].exclusive = false;
}

/* ---- Reads ---- */

uint64_t model_begin_read(Model *m)
{
    m->now++;
    if (!m->reads++)
        m->reads_since = m->now;
    return m->now;
}

/* Nothing has changed the sector since the read began, but it was not known what it holds: from now on, it
 * is. */
static void observe(Model *m, Sector *s, uint64_t began, uint64_t value)
{
    bool durable = true;
    uint64_t known;

    for (unsigned i = 0; i < s->count; i++) {
        const Version *v = &s->versions[i];

        if (v->end == NEVER || v->end > began)
            return;
        durable &= v->durable;
    }
    if (is_settled(m, s, &known) || !has_room(m, s))
        return;
    m->now++;
    s->versions[s->count++] =
        (Version){.value = value, .start = m->now, .end = m->now, .sure = true, .durable = durable};
}

const char *model_describe(const Model *m, uint64_t sector)
{
    const Sector *s = &m->sectors[sector];
    static char text[1024];
    size_t used = 0;

    for (unsigned i = 0; i < s->count && used < sizeof(text) - 128; i++) {
        const Version *v = &s->versions[i];

        used += (size_t)snprintf(text + used, sizeof(text) - used,
            "\n  %016" PRIx64 " from %" PRIu64 " to %" PRId64 "%s%s%s", v->value, v->start, (int64_t)v->end,
            v->sure ? " sure" : "", v->outlives ? " outlives" : "", v->durable ? " durable" : "");
    }
    return text;
}

static bool is_changing(const Sector *s, uint64_t began)
{
    for (unsigned i = 0; i < s->count; i++)
        if (s->versions[i].end > began && s->versions[i].start != s->versions[i].end)
            return true;
    return false;
}

/* Nobody promises that a read sees a sector as a whole while that is written: each byte for itself. */
static bool is_mixed(
    const Model *m, uint64_t began, const Sector *s, unsigned from, unsigned to, const uint8_t *data)
{
    bool found[SECTOR] = {0}, all = true;
    uint8_t contents[SECTOR];

    for (unsigned i = 0; i < s->count; i++) {
        if (!is_readable(s, &s->versions[i], began))
            continue;
        model_fill(m, s->versions[i].value, contents);
        for (unsigned k = from; k < to; k++)
            found[k] |= contents[k] == data[k - from];
    }
    for (unsigned k = from; k < to; k++)
        all &= found[k];
    return all;
}

static void check_part(
    Model *m, uint64_t began, uint64_t sector, unsigned from, unsigned to, const uint8_t *data)
{
    Sector *s = &m->sectors[sector];
    uint64_t word = 0;

    for (unsigned i = s->count; i-- > 0;) {
        const Version *v = &s->versions[i];

        if (!is_readable(s, v, began) || !is_value(m, v->value, from, to, data))
            continue;
        if (to - from == SECTOR)
            observe(m, s, began, v->value);
        return;
    }
    if (is_changing(s, began) && is_mixed(m, began, s, from, to, data))
        return;
    memcpy(&word, data, MIN(sizeof(word), (size_t)(to - from)));
    sim_fail("sector %" PRIu64 " reads as %016" PRIx64 " in bytes %u to %u; the read began at %" PRIu64
             ", it may hold%s",
        sector, word, from, to, began, model_describe(m, sector));
}

void model_end_read(Model *m, uint64_t began, uint64_t offset, uint64_t bytes, const uint8_t *data)
{
    uint64_t end = offset + bytes;

    for (uint64_t i = offset / SECTOR; data && i * SECTOR < end; i++) {
        uint64_t at = i * SECTOR, from = MAX(offset, at), to = MIN(end, at + SECTOR);

        check_part(m, began, i, (unsigned)(from - at), (unsigned)(to - at), data + (from - offset));
    }
    m->reads--;
}

/* ---- Flushes ---- */

uint64_t model_begin_flush(Model *m)
{
    return ++m->now;
}

static void make_durable(Model *m, uint64_t began)
{
    for (uint64_t i = 0; i < m->capacity; i++) {
        Sector *s = &m->sectors[i];

        for (unsigned k = 0; k < s->count; k++)
            s->versions[k].durable |= s->versions[k].sure && s->versions[k].end < began;
    }
}

void model_end_flush(Model *m, uint64_t began)
{
    m->now++;
    m->other_size = m->size;
    make_durable(m, began);
}

/* ---- Resizing ---- */

/* What is cut off may come back as it was, as zeroes, or as the layer below; what is added is zeroes, always.
 */
bool model_begin_resize(Model *m, uint64_t size, const uint64_t *hidden)
{
    for (uint64_t i = size; i < m->size; i++) {
        prune(m, &m->sectors[i]);
        if (m->sectors[i].count > MAX_VERSIONS - 2)
            return false;
    }
    m->now++;
    m->other_size = size;
    for (uint64_t i = size; i < m->size; i++) {
        Sector *s = &m->sectors[i];

        s->versions[s->count++] = (Version){.value = 0, .start = m->now, .end = NEVER};
        s->versions[s->count++] = (Version){.value = hidden[i], .start = m->now, .end = NEVER};
    }
    for (uint64_t i = m->size; i < size; i++)
        model_set_initial(m, i, 0);
    return true;
}

void model_end_resize(Model *m, bool done)
{
    uint64_t size = MAX(m->size, m->other_size);

    m->now++;
    for (uint64_t i = MIN(m->size, m->other_size); i < size; i++)
        for (unsigned k = 0; k < m->sectors[i].count; k++)
            m->sectors[i].versions[k].end = MIN(m->sectors[i].versions[k].end, m->now);
    if (done)
        m->size = m->other_size;
}

/* ---- Snapshots ---- */

uint64_t *model_values(const Model *m)
{
    AUTO_FREE uint64_t *values = mem_zalloc(m->capacity * sizeof(*values));

    for (uint64_t i = 0; i < m->size; i++)
        if (!is_settled(m, &m->sectors[i], &values[i]))
            return NULL;
    return TAKE(values);
}

bool model_begin_apply(Model *m, uint64_t size, const uint64_t *values, Change *ret_change)
{
    uint64_t count = MIN(size, m->size);

    for (uint64_t i = 0; i < count; i++)
        if (!has_room(m, &m->sectors[i]))
            return false;
    *ret_change = (Change){.count = count, .start = ++m->now};
    m->other_size = size;
    for (uint64_t i = 0; i < count; i++) {
        Sector *s = &m->sectors[i];

        s->versions[s->count++] =
            (Version){.value = values[i], .start = m->now, .end = NEVER, .outlives = true};
    }
    for (uint64_t i = m->size; i < size; i++)
        model_set_initial(m, i, values[i]);
    return true;
}

/* ---- Crashes ---- */

bool model_survives(const Model *m, uint64_t sector, const uint8_t *contents, bool power)
{
    const Sector *s = &m->sectors[sector];

    for (unsigned i = s->count; i-- > 0;)
        if (survives(s, &s->versions[i], power) && is_value(m, s->versions[i].value, 0, SECTOR, contents))
            return true;
    return false;
}

static void adopt_size(Model *m, uint64_t size)
{
    if (size != m->size && size != m->other_size)
        sim_fail("a crash leaves a disk of %" PRIu64 " sectors; it had %" PRIu64 " or %" PRIu64, size,
            m->size, m->other_size);
    m->other_size = m->size + m->other_size - size;
    m->size = size;
}

/* One of the survivors is on the disk, all that came after it is not. */
void model_power_cut(Model *m, uint64_t size)
{
    adopt_size(m, size);
    m->other_size = size;
    m->now++;
    for (uint64_t i = 0; i < m->capacity; i++) {
        Sector *s = &m->sectors[i], old = *s;

        *s = (Sector){0};
        for (unsigned k = 0; k < old.count; k++)
            if (survives(&old, &old.versions[k], true))
                s->versions[s->count++] = (Version){.value = old.versions[k].value,
                    .start = m->now,
                    .end = m->now,
                    .sure = true,
                    .outlives = true,
                    .durable = true};
    }
}

/* What nobody has promised may be lost, or may have got into the file. */
void model_killed(Model *m, uint64_t size)
{
    adopt_size(m, size);
    m->now++;
    for (uint64_t i = 0; i < m->capacity; i++) {
        Sector *s = &m->sectors[i];

        s->exclusive = false;
        for (unsigned k = 0; k < s->count; k++) {
            Version *v = &s->versions[k];

            v->end = MIN(v->end, m->now);
            v->sure &= v->outlives || v->durable;
        }
    }
}

void model_closed(Model *m)
{
    m->now++;
    m->other_size = m->size;
    make_durable(m, m->now);
}
