/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the simulator does with an image. An operation tells the model what it is about to do, does it, and
 * tells the outcome. A new one is a function and a line in operations[].
 */
#include "base/mem.h"
#include "drivers/qcow2/test-sim.h"

#include <stdio.h>

/* Whether an error has an excuse. */
void expect(Sim *sim, const char *what, int r)
{
    if (mem_corruptions)
        sim_fail("%s: the engine reports corruption", what);
    if (r < 0 && mem_failures == sim->failures && !sim->crashed)
        sim_fail("%s fails for no reason: %s", what, strerror(-r));
    if (r >= 0 && !sim->crashed)
        happened(what);
    note(2, (uint64_t)(int64_t)r, test_steps);
}

typedef struct Range {
    uint64_t offset, bytes;
} Range;

/* Often in the same few clusters. */
static Range draw_range(const Sim *sim, uint64_t max, uint64_t align)
{
    uint64_t size = sim->model.size * SECTOR, hot = MIN(size, 8 * sim->shape.cluster);
    uint64_t area = one_in(3) ? size : hot, offset = align_down(test_random(area), align);
    uint64_t bytes = 1 + test_random(one_in(2) ? MIN(max, 2 * sim->shape.cluster) : max);

    bytes = MIN(align_up(bytes, align), max);
    return (Range){offset, MIN(bytes, size - offset)};
}

static uint64_t max_bytes(const Sim *sim)
{
    return MIN(sim->model.size * SECTOR, MAX(64 * KIB, 3 * sim->shape.cluster));
}

/* Encrypted images have whole sectors only. */
static uint64_t draw_align(const Sim *sim)
{
    return one_in(4) && !sim->shape.encrypted ? 1 : SECTOR;
}

void draw_name(Sim *sim, char *name)
{
    size_t bytes = (size_t)snprintf(name, SIM_NAME_BYTES, "%" PRIu64, ++sim->next_value);
    size_t length = MAX(bytes, (size_t)test_random(ANY_OF(4, 20, 100, SIM_NAME_BYTES)));

    memset(name + bytes, '-', length - bytes);
    name[length] = '\0';
}

/* Numbers that compress, noise that does not, zeroes. */
static void draw_data(Sim *sim, uint64_t offset, uint64_t bytes, uint8_t *data)
{
    uint64_t kind = test_random(8), value = ++sim->next_value;

    if (kind == 0) {
        memset(data, 0, bytes);
        return;
    }
    for (uint64_t done = 0, count; done < bytes; done += count) {
        uint64_t at = offset + done, word = kind == 1 ? test_random(UINT64_MAX) * UINT64_C(0x9e3779b97f4a7c15)
                                                      : value << 32 | (at / SECTOR + 1);

        count = MIN(bytes - done, 8 - at % 8);
        memcpy(data + done, (uint8_t *)&word + at % 8, count);
    }
}

static unsigned draw_flags(const Sim *sim)
{
    unsigned flags = test_random(100) < sim->shape.outlives ? REQ_OUTLIVES : 0;

    return flags | (one_in(6) ? (unsigned)REQ_FUA : 0);
}

static void write_at(Sim *sim, Range range, unsigned flags)
{
    AUTO_FREE uint8_t *data = mem_zalloc(range.bytes);
    struct iovec iov;
    Change change;
    int r;

    draw_data(sim, range.offset, range.bytes, data);
    if (!model_begin(&sim->model, range.offset, range.bytes, data, flags & REQ_OUTLIVES, &change)) {
        test_pause();
        return;
    }
    say("write %" PRIu64 "+%" PRIu64 " flags %x, %" PRIu64, range.offset, range.bytes, flags, change.start);
    r = bitmaps_begin(sim, range.offset, range.bytes);
    if (r == 0) {
        r = driver_qcow2.write(sim->node, range.offset, io_slice_of(&iov, data, range.bytes), flags);
        bitmaps_end(sim, range.offset, range.bytes);
    }
    say("  write %" PRIu64 ": %d", change.start, r);
    model_end(&sim->model, &change, r == 0, r == 0 && (flags & REQ_FUA));
    expect(sim, flags & REQ_COMPRESSED ? "compressed write" : "write", r);
}

static void op_write(Sim *sim)
{
    write_at(sim, draw_range(sim, max_bytes(sim), draw_align(sim)), draw_flags(sim));
}

static void op_write_compressed(Sim *sim)
{
    uint64_t size = sim->model.size * SECTOR;
    Range range = draw_range(sim, size, sim->shape.cluster);

    if (sim->shape.data_file || sim->shape.encrypted)
        return;
    range.bytes = MIN(range.bytes, 4 * sim->shape.cluster);
    if (!is_aligned(range.bytes, sim->shape.cluster) && range.offset + range.bytes != size)
        return;
    write_at(sim, range, REQ_COMPRESSED);
}

static void op_read(Sim *sim)
{
    Range range = draw_range(sim, max_bytes(sim), draw_align(sim));
    AUTO_FREE uint8_t *data = mem_zalloc(range.bytes);
    uint64_t began = model_begin_read(&sim->model);
    struct iovec iov;
    int r;

    say("read %" PRIu64 "+%" PRIu64 ", %" PRIu64, range.offset, range.bytes, began);
    r = driver_qcow2.read(sim->node, range.offset, io_slice_of(&iov, data, range.bytes));
    say("  read %" PRIu64 ": %d", began, r);
    model_end_read(&sim->model, began, range.offset, range.bytes, r < 0 || sim->crashed ? NULL : data);
    expect(sim, "read", r);
}

static void op_write_zeroes(Sim *sim)
{
    Range range = draw_range(sim, max_bytes(sim), draw_align(sim));
    unsigned flags = draw_flags(sim) & REQ_OUTLIVES;
    Change change;
    int r;

    flags |= (one_in(2) ? (unsigned)REQ_MAY_UNMAP : 0) | (one_in(8) ? (unsigned)REQ_NO_FALLBACK : 0);
    if (sim->shape.v2)
        return;
    if (!model_begin(&sim->model, range.offset, range.bytes, NULL, flags & REQ_OUTLIVES, &change)) {
        test_pause();
        return;
    }
    say("zero %" PRIu64 "+%" PRIu64 " flags %x, %" PRIu64, range.offset, range.bytes, flags, change.start);
    r = bitmaps_begin(sim, range.offset, range.bytes);
    if (r == 0) {
        r = driver_qcow2.write_zeroes(sim->node, range.offset, range.bytes, flags);
        bitmaps_end(sim, range.offset, range.bytes);
    }
    say("  zero %" PRIu64 ": %d", change.start, r);
    model_end(&sim->model, &change, r == 0, false);
    if (!(flags & REQ_NO_FALLBACK) || r != -ENOTSUP)
        expect(sim, "write_zeroes", r);
}

/* Whole clusters become zeroes, others stay as they are. */
static void op_discard(Sim *sim)
{
    Range range = draw_range(sim, sim->model.size * SECTOR, draw_align(sim));
    uint64_t size = sim->model.size * SECTOR, cluster = sim->shape.cluster;
    uint64_t end = range.offset + range.bytes, first = align_up(range.offset, cluster);
    Change change;
    int r;

    end = end == size ? size : align_down(end, cluster);
    if (first >= end || (sim->shape.v2 && sim->shape.backing))
        return;
    if (!model_begin(&sim->model, first, end - first, NULL, false, &change)) {
        test_pause();
        return;
    }
    say("discard %" PRIu64 "+%" PRIu64 ", %" PRIu64, range.offset, range.bytes, change.start);
    r = bitmaps_begin(sim, range.offset, range.bytes);
    if (r == 0) {
        r = driver_qcow2.discard(sim->node, range.offset, range.bytes);
        bitmaps_end(sim, range.offset, range.bytes);
    }
    say("  discard %" PRIu64 ": %d", change.start, r);
    model_end(&sim->model, &change, r == 0, false);
    expect(sim, "discard", r);
}

int flush(Sim *sim)
{
    uint64_t began = model_begin_flush(&sim->model);
    int r;

    say("flush, %" PRIu64, began);
    r = driver_qcow2.flush(sim->node);
    say("  flush %" PRIu64 ": %d", began, r);
    if (r == 0) {
        model_end_flush(&sim->model, began);
        sim->excused = false;
    }
    expect(sim, "flush", r);
    return r;
}

static void op_flush(Sim *sim)
{
    (void)flush(sim);
}

/* What is said to be zeroes must read as such. */
static void op_status(Sim *sim)
{
    Range range = draw_range(sim, max_bytes(sim), SECTOR);
    uint64_t began = model_begin_read(&sim->model);
    AUTO_FREE uint8_t *zeroes = NULL;
    BlockStatus status = {0};
    int r = driver_qcow2.status(sim->node, range.offset, range.bytes, &status);
    bool zero = r == 0 && !sim->crashed && (status.flags & BLOCK_STATUS_ZERO);

    say("status %" PRIu64 "+%" PRIu64 ": %d, %" PRIu64 " flags %x", range.offset, range.bytes, r,
        status.bytes, status.flags);
    if (r == 0 && (!status.bytes || status.bytes > range.bytes))
        sim_fail("status of %" PRIu64 " bytes of %" PRIu64, status.bytes, range.bytes);
    zeroes = mem_zalloc(range.bytes);
    model_end_read(&sim->model, began, range.offset, zero ? status.bytes : 0, zero ? zeroes : NULL);
    expect(sim, "status", r);
}

/* What shows where nothing is mapped. */
static uint64_t *hidden_values(const Sim *sim)
{
    uint64_t *hidden = mem_zalloc(sim->model.capacity * sizeof(*hidden));

    for (uint64_t i = 0; i < MIN(sim->model.capacity, sim->shape.backing_sectors); i++)
        hidden[i] = UINT64_C(1) << 32 | i;
    return hidden;
}

static void op_resize(Sim *sim)
{
    AUTO_FREE uint64_t *hidden = hidden_values(sim);
    uint64_t size = 1 + test_random(sim->model.capacity);
    Preallocation prealloc = PREALLOCATION_OFF;
    AUTO_ERROR Error err = ERROR_INIT;
    int r;

    if (size > sim->model.size && test_random(2))
        prealloc = (Preallocation)ANY_OF(PREALLOCATION_METADATA, PREALLOCATION_FALLOC, PREALLOCATION_FULL);
    if (bitmaps_lost(sim) || (snapshots_any(sim) && (sim->shape.v2 || size < sim->model.size)))
        return;
    /* That the size may be another one is over. */
    if (sim->model.other_size != sim->model.size && flush(sim) < 0)
        return;
    if (!model_begin_resize(&sim->model, size, hidden))
        return;
    say("resize to %" PRIu64 " sectors, preallocation %d", size, prealloc);
    sim->resized = true;
    r = driver_qcow2.resize(sim->node, size * SECTOR, false, prealloc, 0, &err);
    say("  resize: %d", r);
    if (!sim->crashed)
        model_end_resize(&sim->model, sim->node->size == size * SECTOR);
    if (!sim->crashed)
        bitmaps_resized(sim);
    expect(sim, prealloc == PREALLOCATION_OFF ? "resize" : "growth with preallocation", r);
}

/* Nothing is wrong ever, and leaks only after crashes and failures. */
static void op_check(Sim *sim)
{
    unsigned fix = (unsigned)ANY_OF(0, CHECK_FIX_LEAKS, CHECK_FIX_LEAKS | CHECK_FIX_ERRORS);
    uint64_t failures = mem_failures;
    AUTO_ERROR Error err = ERROR_INIT;
    CheckResult result = {0};
    int r;

    /* An image that was given up after failures is not what memory says. */
    if (failures != sim->failures && flush(sim) < 0)
        return;
    r = driver_qcow2.check(sim->node, fix, &result, &err);
    sim->blemished |= mem_failures != sim->failures;
    say("check, fix %u: %d, %" PRIu64 " leaks", fix, r, result.leaks);
    if (result.corruptions || (result.leaks && !sim->blemished && !sim->crowded))
        sim_fail(
            "a check finds %" PRIu64 " corruptions, %" PRIu64 " leaks", result.corruptions, result.leaks);
    if (r == 0 && fix && mem_failures == failures)
        sim->blemished = mem_failures != sim->failures;
    expect(sim, "check", r);
}

static void draw_caches(Shape *s)
{
    s->l2_cache = ANY_OF(0, 1, 1, 4096);
    s->refcount_cache = ANY_OF(0, 1, 1, 4096);
    s->slice = one_in(2) ? 512 : 0;
}

static void put_options_into_force(Sim *sim)
{
    BlockdevOptions options = {0};
    AUTO_ERROR Error err = ERROR_INIT;
    int r;

    draw_caches(&sim->shape);
    set_options(&sim->shape);
    options.u.qcow2 = mem_options;
    options.u.qcow2.file = &any_file;
    sim->node->discard_unmap = one_in(2);
    r = driver_qcow2.reopen_prepare(sim->node, &options, &err);
    expect(sim, "reopening with other options", r);
    if (r == 0 && one_in(4))
        driver_qcow2.reopen_abort(sim->node);
    else if (r == 0)
        driver_qcow2.reopen_commit(sim->node);
}

/* Nothing is owed to the file; others may read it. */
static void be_read_only(Sim *sim)
{
    sim->node->read_only = true;
    if (mem_failures == sim->failures && !sim->crashed) {
        model_closed(&sim->model);
        judge_closed(sim);
    }
    read_all(sim);
    expect(sim, "read-only", sim->crashed ? -EIO : 0);
}

/* Without closing it. */
static void op_reopen_options(Sim *sim)
{
    AUTO_ERROR Error err = ERROR_INIT;
    int r = flush(sim);

    if (r < 0 || sim->crashed)
        return;
    bitmaps_remember(sim);
    r = driver_qcow2.stop_writing(sim->node, &err);
    say("reopen with other options: %d", r);
    expect(sim, "stopping to write", r);
    if (r < 0)
        return;
    if (one_in(2))
        be_read_only(sim);
    if (!one_in(4))
        put_options_into_force(sim);
    end_faults(sim);
    sim->node->read_only = false;
    r = driver_qcow2.start_writing(sim->node, &err);
    if (r < 0 && !sim->crashed)
        sim_fail("writing does not start again: %s", err.message);
}

/* In the header's cluster there is not much room. */
static void op_change_backing_file(Sim *sim)
{
    char name[SIM_NAME_BYTES];
    int r;

    if (!sim->shape.backing || sim->name_unsure)
        return;
    draw_name(sim, name);
    strcpy(sim->names[1], sim->node->backing_filename);
    strcpy(sim->names[0], name);
    sim->name_unsure = true;
    r = driver_qcow2.change_backing_file(sim->node, name, one_in(2) ? "raw" : "qcow2");
    say("change the backing file's name, %zu bytes: %d", strlen(name), r);
    sim->crowded |= sim->shape.cluster <= 1024 && strlen(name) > 60;
    if (r != -ENOSPC || !sim->crowded)
        expect(sim, "changing the backing file", r);
    if (r == 0 && !sim->crashed) {
        strcpy(sim->names[1], name);
        sim->name_unsure = false;
    }
}

/* A disk that fails for a while. */
static void op_faults(Sim *sim)
{
    if (!sim->shape.faults || sim->faults_end)
        return;
    mem_faults = (unsigned)ANY_OF(0, 20, 100, 500, 1000);
    mem_read_faults = (unsigned)ANY_OF(0, 0, 20, 100, 1000);
    mem_partial_faults = one_in(2);
    if (one_in(3))
        mem_limit = mem_file->size + test_random(16 * KIB);
    sim->faults_end = test_steps + 1 + test_random(ANY_OF(3, 30, 200));
    happened("a failure of the disk");
    say("the disk fails: %u %u limit %" PRIu64, mem_faults, mem_read_faults, mem_limit);
}

void read_all(Sim *sim)
{
    uint64_t size = sim->model.size * SECTOR, piece = MIN(size, 64 * KIB);

    for (uint64_t at = 0; at < size && !sim->crashed; at += piece) {
        uint64_t bytes = MIN(piece, size - at), began = model_begin_read(&sim->model);
        AUTO_FREE uint8_t *data = mem_zalloc(bytes);
        struct iovec iov;
        int r = driver_qcow2.read(sim->node, at, io_slice_of(&iov, data, bytes));

        model_end_read(&sim->model, began, at, bytes, r < 0 || sim->crashed ? NULL : data);
        expect(sim, "read", r);
    }
}

/* What is done only now and then is done next: bitmaps are written back, caches cleaned. */
static void op_time(Sim *sim)
{
    test_pass_time(ANY_OF(1, 6, 700) * UINT64_C(1000000000));
    expect(sim, "time", 0);
}

static void op_reopen(Sim *sim)
{
    if (sim->over)
        return;
    close_image(sim);
    if (!sim->crashed)
        open_image(sim);
}

static const Operation operations[] = {
    {"write", 40, false, op_write},
    {"read", 20, false, op_read},
    {"write_zeroes", 12, false, op_write_zeroes},
    {"discard", 10, false, op_discard},
    {"write_compressed", 8, false, op_write_compressed},
    {"flush", 6, false, op_flush},
    {"status", 3, false, op_status},
    {"faults", 2, false, op_faults},
    {"time", 3, false, op_time},
    {"resize", 2, true, op_resize},
    {"reopen", 1, true, op_reopen},
    {"reopen_options", 1, true, op_reopen_options},
    {"check", 1, true, op_check},
    {"snapshot", 2, true, op_snapshot},
    {"bitmap", 4, true, op_bitmap},
    {"change_backing_file", 1, true, op_change_backing_file},
};

uint64_t operation_number(const Operation *op)
{
    return (uint64_t)(op - operations);
}

const Operation *draw_operation(void)
{
    unsigned total = 0, at;

    for (size_t i = 0; i < ARRAY_SIZE(operations); i++)
        total += operations[i].weight;
    at = (unsigned)test_random(total);
    for (const Operation *op = operations;; op++) {
        if (at < op->weight)
            return op;
        at -= op->weight;
    }
}
