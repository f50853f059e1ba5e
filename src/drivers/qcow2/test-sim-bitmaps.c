/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Persistent dirty bitmaps in the simulator: made, removed, cleared, merged into, switched on and off. After
 * a crash each shows at least what has changed; closed, exactly what memory said. See test-sim.h.
 *
 * A bitmap may only be lost (inconsistent) when the disk has failed, when it was resized and not written to
 * since, or when the header had no room for the journal.
 */
#include "base/mem.h"
#include "drivers/qcow2/test-bitmaps.h"
#include "drivers/qcow2/test-sim.h"

#define REGION (64 * KIB) /* of the journal, for disks of this size */

static const DriverBitmaps *hooks(void)
{
    return driver_qcow2.bitmaps;
}

static uint64_t granules_for(const Sim *sim, const SimBitmap *b, uint64_t sectors)
{
    return div_round_up(sectors * SECTOR, b->granularity);
}

static void mark(uint8_t *granules, const SimBitmap *b, uint64_t offset, uint64_t bytes)
{
    for (uint64_t g = offset / b->granularity; bytes && g <= (offset + bytes - 1) / b->granularity; g++)
        granules[g] = 1;
}

static void set_state(SimBitmap *b, Stored state)
{
    b->state = state;
    if (state != STORED_NOT)
        return;
    free(TAKE(b->must));
    free(TAKE(b->may));
    free(TAKE(b->last));
}

void bitmaps_forget(Sim *sim)
{
    for (unsigned i = 0; i < MAX_BITMAPS; i++)
        set_state(&sim->bitmaps[i], STORED_NOT);
}

bool bitmaps_any(const Sim *sim)
{
    for (unsigned i = 0; i < MAX_BITMAPS; i++)
        if (sim->bitmaps[i].state != STORED_NOT)
            return true;
    return false;
}

bool bitmaps_lost(const Sim *sim)
{
    for (unsigned i = 0; i < MAX_BITMAPS; i++)
        if (sim->bitmaps[i].state != STORED_NOT && sim->bitmaps[i].lost)
            return true;
    return false;
}

bool bitmaps_may_be_lost(const Sim *sim)
{
    return mem_failures != sim->failures || sim->resized || sim->crowded || sim->excused;
}

/* ---- Changes of the disk ---- */

/* After a crash a region as a whole looks changed, in all bitmaps. */
static void touch(Sim *sim, uint64_t offset, uint64_t bytes)
{
    uint64_t start = align_down(offset, REGION);
    uint64_t end = MIN(align_up(offset + bytes, REGION), sim->model.capacity * SECTOR);

    for (unsigned i = 0; i < MAX_BITMAPS; i++)
        if (sim->bitmaps[i].state != STORED_NOT)
            mark(sim->bitmaps[i].may, &sim->bitmaps[i], start, end - start);
    memset(sim->touched + start / REGION, 1, div_round_up(end - start, REGION));
}

int bitmaps_begin(Sim *sim, uint64_t offset, uint64_t bytes)
{
    int r;

    if (!sim->crashed)
        touch(sim, offset, bytes);
    r = test_change_begin(sim->node, offset, bytes);
    if (r < 0 || sim->crashed)
        return r;
    sim->resized = sim->excused = false;
    for (unsigned i = 0; i < MAX_BITMAPS; i++) {
        SimBitmap *b = &sim->bitmaps[i];

        if (b->state != STORED_NOT && b->counts)
            mark(b->must, b, offset, bytes);
    }
    return 0;
}

void bitmaps_end(Sim *sim, uint64_t offset, uint64_t bytes)
{
    test_change_end(sim->node, offset, bytes);
}

void bitmaps_resized(Sim *sim)
{
    test_bitmaps_resize(sim->node, sim->node->size);
    for (unsigned i = 0; i < MAX_BITMAPS; i++) {
        SimBitmap *b = &sim->bitmaps[i];
        uint64_t count;

        if (b->state == STORED_NOT)
            continue;
        count = granules_for(sim, b, sim->model.size);
        memset(b->must + count, 0, granules_for(sim, b, sim->model.capacity) - count);
    }
}

/* ---- Commands ---- */

static void add(Sim *sim, SimBitmap *b)
{
    AUTO_ERROR Error err = ERROR_INIT;
    DirtyBitmap *bitmap;
    int r;

    draw_name(sim, b->name);
    b->granularity = (uint32_t)ANY_OF(512, 512, 1024, 4096, 65536);
    r = hooks()->can_add(sim->node, b->name, b->granularity, &err);
    if (r < 0)
        sim_fail("there cannot be a bitmap: %s", err.message);
    b->must = mem_zalloc(granules_for(sim, b, sim->model.capacity));
    b->may = mem_zalloc(granules_for(sim, b, sim->model.capacity));
    for (uint64_t i = 0; i * REGION < sim->model.capacity * SECTOR; i++)
        if (sim->touched[i])
            mark(b->may, b, i * REGION, MIN(REGION, sim->model.capacity * SECTOR - i * REGION));
    b->counts = b->lost = b->changing = false;
    b->state = STORED_MAYBE;
    if (dirty_bitmap_new(sim->node, b->name, b->granularity, &bitmap, &err) < 0)
        sim_fail("a bitmap cannot be made: %s", err.message);
    dirty_bitmap_set_persistent(bitmap, true);
    dirty_bitmap_set_enabled(bitmap, !one_in(4));
    r = hooks()->added(sim->node, bitmap, &err);
    say("add bitmap %.10s granularity %u: %d", b->name, b->granularity, r);
    if (sim->crashed)
        return;
    if (r == 0) {
        b->state = STORED_SURE;
        b->counts = dirty_bitmap_is_enabled(bitmap);
    } else {
        dirty_bitmap_free(bitmap);
    }
    if (r != -ENOSPC || !sim->crowded)
        expect(sim, "adding a bitmap", r);
}

static void drop(Sim *sim, SimBitmap *b, DirtyBitmap *bitmap)
{
    AUTO_ERROR Error err = ERROR_INIT;
    int r;

    b->state = STORED_MAYBE;
    r = hooks()->remove(sim->node, bitmap, &err);
    say("remove bitmap %.10s: %d", b->name, r);
    if (sim->crashed)
        return;
    if (r == 0) {
        dirty_bitmap_free(bitmap);
        set_state(b, STORED_NOT);
    }
    if (r != -ENOSPC || !sim->crowded)
        expect(sim, "removing a bitmap", r);
}

static void toggle(Sim *sim, SimBitmap *b, DirtyBitmap *bitmap)
{
    bool was = b->counts;
    AUTO_ERROR Error err = ERROR_INIT;
    int r;

    b->counts = false;
    b->changing = true;
    dirty_bitmap_set_enabled(bitmap, !was);
    r = hooks()->changed(sim->node, bitmap, &err);
    say("%s bitmap %.10s: %d", was ? "disable" : "enable", b->name, r);
    if (sim->crashed)
        return;
    b->changing = r < 0;
    b->counts = was == (r < 0);
    dirty_bitmap_set_enabled(bitmap, b->counts);
    expect(sim, was ? "disabling a bitmap" : "enabling a bitmap", r);
}

/* As the graph does it: what fails is undone. */
static int tell_contents(Sim *sim, DirtyBitmap *bitmap, const uint8_t *before, uint64_t bytes)
{
    AUTO_ERROR Error err = ERROR_INIT, ignored = ERROR_INIT;
    int r = hooks()->changed(sim->node, bitmap, &err);

    if (r < 0) {
        dirty_bitmap_from_bytes(bitmap, 0, before, bytes);
        if (hooks()->changed(sim->node, bitmap, &ignored) < 0)
            return 1; /* what is on disk nobody knows */
    }
    return r;
}

static void clear(Sim *sim, SimBitmap *b, DirtyBitmap *bitmap)
{
    uint64_t bytes = dirty_bitmap_stored_bytes(bitmap), count = granules_for(sim, b, sim->model.size);
    AUTO_FREE uint8_t *before = mem_zalloc(bytes), *must = mem_zalloc(count);
    int r;

    dirty_bitmap_to_bytes(bitmap, 0, before, bytes);
    memcpy(must, b->must, count);
    memset(b->must, 0, count);
    dirty_bitmap_clear(bitmap);
    r = tell_contents(sim, bitmap, before, bytes);
    say("clear bitmap %.10s: %d", b->name, r);
    if (sim->crashed)
        return;
    if (r < 0)
        memcpy(b->must, must, count);
    expect(sim, "clearing a bitmap", r == 1 ? -EIO : r);
}

static const DirtyBitmap *draw_source(const Sim *sim, const DirtyBitmap *target)
{
    const SimBitmap *b = &sim->bitmaps[test_random(MAX_BITMAPS)];
    const DirtyBitmap *source = b->state == STORED_SURE ? dirty_bitmap_find(sim->node, b->name) : NULL;

    return source && source != target && !b->lost ? source : NULL;
}

/* Marks what source has, or some range. */
static void merge_into(Sim *sim, DirtyBitmap *bitmap, const DirtyBitmap *source, SimBitmap *marked)
{
    uint64_t size = sim->node->size, offset = test_random(size), bytes = 1 + test_random(size - offset);

    if (!source) {
        dirty_bitmap_set(bitmap, offset, bytes);
        mark(marked->must, marked, offset, bytes);
        return;
    }
    for (offset = 0; dirty_bitmap_next_dirty(source, offset, size, &offset, &bytes); offset += bytes) {
        dirty_bitmap_set(bitmap, offset, bytes);
        mark(marked->must, marked, offset, bytes);
    }
}

static void merge(Sim *sim, SimBitmap *b, DirtyBitmap *bitmap)
{
    uint64_t bytes = dirty_bitmap_stored_bytes(bitmap), count = granules_for(sim, b, sim->model.size);
    AUTO_FREE uint8_t *before = mem_zalloc(bytes), *marks = mem_zalloc(count);
    SimBitmap marked = {.must = marks, .granularity = b->granularity};
    const DirtyBitmap *source = draw_source(sim, bitmap);
    int r;

    dirty_bitmap_to_bytes(bitmap, 0, before, bytes);
    merge_into(sim, bitmap, source, &marked);
    for (uint64_t g = 0; g < count; g++)
        b->may[g] |= marks[g];
    r = tell_contents(sim, bitmap, before, bytes);
    say("merge %s into bitmap %.10s: %d", source ? "another" : "a range", b->name, r);
    if (sim->crashed)
        return;
    for (uint64_t g = 0; r == 0 && g < count; g++)
        b->must[g] |= marks[g];
    expect(sim, "merging bitmaps", r == 1 ? -EIO : r);
}

void op_bitmap(Sim *sim)
{
    SimBitmap *b = &sim->bitmaps[test_random(MAX_BITMAPS)];
    static void (*const changes[])(Sim *, SimBitmap *, DirtyBitmap *) = {toggle, toggle, clear, merge, merge};
    DirtyBitmap *bitmap;

    if (sim->shape.v2 || b->state == STORED_MAYBE)
        return;
    if (b->state == STORED_NOT) {
        add(sim, b);
        return;
    }
    bitmap = dirty_bitmap_find(sim->node, b->name);
    if (b->lost || one_in(8))
        drop(sim, b, bitmap);
    else
        changes[test_random(ARRAY_SIZE(changes))](sim, b, bitmap);
}

/* ---- Judgement ---- */

static void judge_bits(const Sim *sim, const SimBitmap *b, const ImageBitmap *found)
{
    for (uint64_t g = 0; g < found->granules; g++) {
        if (b->must[g] && !found->dirty[g])
            sim_fail(
                "bitmap %.10s does not show granule %" PRIu64 " of %u bytes", b->name, g, b->granularity);
        if (found->dirty[g] && !b->may[g])
            sim_fail("bitmap %.10s shows granule %" PRIu64 " of %u bytes, where nothing has changed", b->name,
                g, b->granularity);
    }
}

static void judge_crash(const Sim *sim, const SimBitmap *b, const ImageBitmap *found)
{
    if (found->granularity != b->granularity)
        sim_fail("bitmap %.10s has another granularity", b->name);
    if (!found->usable && !b->lost && b->state == STORED_SURE && !bitmaps_may_be_lost(sim))
        sim_fail("after a crash bitmap %.10s is lost", b->name);
    if (found->usable && b->lost && !sim->excused)
        sim_fail("after a crash bitmap %.10s is trusted again", b->name);
    if (!found->usable)
        return;
    if (!b->changing && b->state == STORED_SURE && found->counts != b->counts)
        sim_fail("after a crash bitmap %.10s is %s", b->name, found->counts ? "enabled" : "disabled");
    judge_bits(sim, b, found);
}

void bitmaps_judge_crash(Sim *sim, const Image *image)
{
    for (unsigned i = 0; i < MAX_BITMAPS; i++) {
        const SimBitmap *b = &sim->bitmaps[i];
        ImageBitmap found = {0};

        if (b->state == STORED_NOT)
            continue;
        if (image_bitmap(image, b->name, &found))
            judge_crash(sim, b, &found);
        else if (b->state == STORED_SURE)
            sim_fail("after a crash bitmap %.10s is gone", b->name);
        free(found.dirty);
    }
}

/* Says what memory has said. */
static void judge_exact(SimBitmap *b, const ImageBitmap *found)
{
    if (found->in_use || found->counts != b->last_counts)
        sim_fail("closed, bitmap %.10s is%s%s", b->name, found->in_use ? " in use," : "",
            found->counts ? " enabled" : " disabled");
    for (uint64_t g = 0; g < found->granules; g++)
        if (found->dirty[g] != b->last[g])
            sim_fail("closed, bitmap %.10s %s granule %" PRIu64, b->name,
                found->dirty[g] ? "shows" : "does not show", g);
    memcpy(b->may, found->dirty, found->granules);
}

void bitmaps_remember(Sim *sim)
{
    for (unsigned i = 0; i < MAX_BITMAPS; i++) {
        SimBitmap *b = &sim->bitmaps[i];
        const DirtyBitmap *bitmap = dirty_bitmap_find(sim->node, b->name);
        uint64_t count;

        free(TAKE(b->last));
        if (b->state != STORED_SURE || !bitmap || b->lost)
            continue;
        count = granules_for(sim, b, sim->model.size);
        b->last = mem_zalloc(count);
        b->last_counts = dirty_bitmap_is_enabled(bitmap);
        for (uint64_t g = 0; g < count; g++)
            b->last[g] = dirty_bitmap_get(bitmap, g * b->granularity);
    }
}

void bitmaps_judge_closed(Sim *sim, const Image *image)
{
    if (!bitmaps_may_be_lost(sim))
        memset(sim->touched, 0, sizeof(sim->touched));
    for (unsigned i = 0; i < MAX_BITMAPS; i++) {
        SimBitmap *b = &sim->bitmaps[i];
        ImageBitmap found = {0};

        if (b->state == STORED_NOT)
            continue;
        if (!image_bitmap(image, b->name, &found)) {
            if (b->state == STORED_SURE)
                sim_fail("closed, bitmap %.10s is gone", b->name);
            continue;
        }
        judge_crash(sim, b, &found);
        if (b->last && (!found.in_use || !bitmaps_may_be_lost(sim)))
            judge_exact(b, &found);
        free(found.dirty);
    }
}

/* ---- After opening ---- */

static void compare(SimBitmap *b, const DirtyBitmap *bitmap, const ImageBitmap *found)
{
    if (!bitmap)
        sim_fail("bitmap %.10s is not loaded", b->name);
    if (dirty_bitmap_is_inconsistent(bitmap) == found->usable)
        sim_fail("bitmap %.10s is %s when it is loaded", b->name, found->usable ? "lost" : "trusted");
    b->lost = !found->usable;
    b->changing = false;
    if (b->lost)
        return;
    if (dirty_bitmap_is_enabled(bitmap) != found->counts)
        sim_fail("bitmap %.10s is %s when it is loaded", b->name, found->counts ? "disabled" : "enabled");
    b->counts = found->counts;
    for (uint64_t g = 0; g < found->granules; g++)
        if (dirty_bitmap_get(bitmap, g * b->granularity) != found->dirty[g])
            sim_fail("bitmap %.10s, granule %" PRIu64 " is wrong when it is loaded", b->name, g);
}

void bitmaps_compare(Sim *sim, const Image *image, bool settled)
{
    uint64_t count = 0;
    ImageFacts facts;

    sim->excused &= !sim->power; /* what a killed process has left with the kernel may go yet */
    image_check(image, false, &facts);
    for (unsigned i = 0; i < MAX_BITMAPS; i++) {
        SimBitmap *b = &sim->bitmaps[i];
        ImageBitmap found = {0};
        bool is_there = b->state != STORED_NOT && image_bitmap(image, b->name, &found);

        count += is_there;
        if (is_there)
            compare(b, dirty_bitmap_find(sim->node, b->name), &found);
        if (b->state == STORED_MAYBE && settled)
            set_state(b, is_there ? STORED_SURE : STORED_NOT);
        free(found.dirty);
    }
    if (count != facts.bitmaps)
        sim_fail("there are %" PRIu64 " bitmaps, not %" PRIu64, facts.bitmaps, count);
}
