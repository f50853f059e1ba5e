/* SPDX-License-Identifier: Apache-2.0 */
/* The world of the simulator: images, their opening and closing, crashes and failures of the disk. See
 * test-sim.h. */
#include "base/mem.h"
#include "crypto/luks.h"
#include "drivers/qcow2/test-sim.h"

#define MAX_STEPS 3000000 /* of the disk: a run that takes more will never end */

/* ---- The image ---- */

BlockdevRef any_file = {.type = BLOCKDEV_REF_KIND_REFERENCE, .u.reference = (char *)"file"};

uint64_t any_of(const uint64_t *choices, size_t count)
{
    return choices[test_random(count)];
}

bool one_in(uint64_t n)
{
    return test_random(n) == 0;
}

static uint64_t draw_cluster(bool extended)
{
    if (one_in(300))
        return ANY_OF(256 * KIB, 512 * KIB, 2 * MIB);
    if (extended)
        return ANY_OF(16384, 16384, 32768, 65536);
    return ANY_OF(512, 512, 512, 1024, 2048, 4096, 4096, 16384, 65536);
}

/* A small image that is nearly as large as its refcounts can count: 64 blocks in the table, or one block. */
static void draw_growing(Shape *s)
{
    s->v2 = s->extended = s->data_file = s->raw = s->backing = false;
    s->grows = s->preallocated = true;
    s->cluster = 512;
    s->refcount_bits = ANY_OF(1, 2, 64, 64);
    s->sectors = (s->refcount_bits == 64 ? 3965 : s->refcount_bits == 1 ? 4020 : 2000) - test_random(200);
}

void draw_shape(Shape *s)
{
    *s = (Shape){.v2 = one_in(6), .backing = one_in(3), .faults = one_in(2), .crashes = !one_in(5)};
    s->extended = !s->v2 && one_in(4);
    s->data_file = !s->v2 && one_in(6);
    s->raw = s->data_file && !s->backing && one_in(2);
    s->lazy = !s->v2 && one_in(6);
    s->zstd = !s->v2 && one_in(3);
    s->cluster = draw_cluster(s->extended);
    s->refcount_bits = s->v2 ? 16 : ANY_OF(1, 2, 4, 8, 16, 16, 32, 64, 64);
    s->sectors = 1 + test_random(ANY_OF(16, 256, 512, 1024));
    if (s->cluster > 64 * KIB)
        s->sectors = 1 + test_random(4 * s->cluster / SECTOR);
    s->preallocated = !s->backing && one_in(12);
    if (one_in(12))
        draw_growing(s);
    s->backing_sectors = s->backing ? 1 + test_random(s->sectors + s->sectors / 4) : 0;
    s->l2_cache = ANY_OF(0, 1, 1, 4096);
    s->refcount_cache = ANY_OF(0, 1, 1, 4096);
    s->slice = one_in(2) ? 512 : 0;
    s->outlives = (unsigned)ANY_OF(0, 0, 50, 100);
    s->encrypted = one_in(40) && !(s->v2 && s->preallocated);
}

void set_options(const Shape *s)
{
    static BlockdevQcow2Encryption luks = {
        .format = BLOCKDEV_QCOW2_ENCRYPTION_FORMAT_LUKS, .u.luks.key_secret = (char *)"secret"};

    mem_options = (BlockdevOptionsQcow2){.data_file = s->data_file ? &any_file : NULL,
        .encrypt = s->encrypted ? &luks : NULL,
        .has_l2_cache_size = s->l2_cache,
        .l2_cache_size = (int64_t)s->l2_cache,
        .has_refcount_cache_size = s->refcount_cache,
        .refcount_cache_size = (int64_t)s->refcount_cache,
        .has_l2_cache_entry_size = s->slice,
        .l2_cache_entry_size = (int64_t)s->slice,
        .has_cache_clean_interval = one_in(2),
        .cache_clean_interval = 1,
        .has_pass_discard_other = one_in(2),
        .pass_discard_other = true,
        .has_pass_discard_request = one_in(2),
        .pass_discard_request = one_in(2),
        .has_lazy_refcounts = !s->v2 && one_in(6),
        .lazy_refcounts = one_in(2),
        .has_discard_no_unref = !s->v2 && one_in(4),
        .discard_no_unref = true};
}

static void make_backing(Sim *sim)
{
    const Shape *s = &sim->shape;
    AUTO_FREE uint8_t *data = mem_zalloc(s->backing_sectors * SECTOR);

    for (uint64_t i = 0; i < s->backing_sectors; i++) {
        if (i < sim->model.capacity)
            model_set_initial(&sim->model, i, UINT64_C(1) << 32 | i);
        model_fill(&sim->model, UINT64_C(1) << 32 | i, data + i * SECTOR);
    }
    mem_backing = mem_file_new(data, s->backing_sectors * SECTOR, false);
}

static void make_image(const Shape *s)
{
    AUTO_ERROR Error err = ERROR_INIT;
    QCryptoBlockCreateOptions luks = {.format = QCRYPTO_BLOCK_FORMAT_LUKS,
        .u.luks = {.key_secret = (char *)"secret",
            .has_cipher_alg = true,
            .cipher_alg = QCRYPTO_CIPHER_ALGO_AES_128,
            .has_cipher_mode = true,
            .cipher_mode = QCRYPTO_CIPHER_MODE_CBC,
            .has_iter_time = true}}; /* 0: nothing that depends on the processor's speed */
    BlockdevCreateOptions options = {
        .u.qcow2 = {.file = &any_file,
            .data_file = s->data_file ? &any_file : NULL,
            .has_data_file_raw = s->raw,
            .data_file_raw = s->raw,
            .backing_file = s->backing ? (char *)"backing" : NULL,
            .size = s->sectors * SECTOR,
            .encrypt = s->encrypted ? &luks : NULL,
            .has_version = true,
            .version = s->v2 ? BLOCKDEV_QCOW2_VERSION_V2 : BLOCKDEV_QCOW2_VERSION_V3,
            .has_cluster_size = true,
            .cluster_size = s->cluster,
            .has_refcount_bits = true,
            .refcount_bits = (int64_t)s->refcount_bits,
            .has_lazy_refcounts = s->lazy,
            .lazy_refcounts = s->lazy,
            .has_preallocation = s->preallocated,
            .preallocation = PREALLOC_MODE_METADATA,
            .has_compression_type = s->zstd,
            .compression_type = QCOW2_COMPRESSION_TYPE_ZSTD,
            .has_extended_l2 = s->extended,
            .extended_l2 = s->extended}};

    mem_file = mem_file_new(NULL, 0, false);
    if (driver_qcow2.create(&options, &err) < 0)
        sim_fail("the image cannot be made: %s", err.message);
}

static int read_key(void *opaque, uint64_t offset, void *data, size_t bytes)
{
    memcpy(data, mem_file->data + *(const uint64_t *)opaque + offset, bytes);
    return 0;
}

/* The judge has the key from the file, as the engine has. */
static void find_cipher(Sim *sim)
{
    Image image = {.file = {mem_file->data, mem_file->size}, .has_data_file = sim->shape.data_file};
    AUTO_ERROR Error err = ERROR_INIT;
    uint64_t offset, bytes;
    LuksIo io = {.read = read_key, .opaque = &offset};
    uint8_t *key = NULL;
    Luks luks;
    int r;

    image_key_place(&image, &offset, &bytes);
    r = luks_read(&io, false, &luks, &err);
    if (r == 0)
        r = luks_unlock(&luks, &io, "secret", &key, &err);
    if (r == 0)
        r = sector_cipher_new(&luks.spec, key, SECTOR, &sim->cipher, &err);
    if (r < 0)
        sim_fail("the image has no key: %s", err.message);
    free(key);
}

void make_files(Sim *sim)
{
    MemFile *made;

    mem_yields = false;
    make_backing(sim);
    make_image(&sim->shape);
    strcpy(sim->names[0], "backing");
    strcpy(sim->names[1], "backing");
    made = mem_file;
    memcpy(sim->head, made->data, sizeof(sim->head));
    mem_file = mem_file_new(made->data, made->size, true);
    mem_file_free(made);
    if (sim->shape.encrypted)
        find_cipher(sim);
    mem_data_file = sim->shape.data_file ? mem_file_new(NULL, 0, true) : NULL;
    mem_yields = true;
}

static Image image_of(const Sim *sim, const MemFile *file, const MemFile *data)
{
    Image image = {
        .file = {file->data, file->size}, .has_data_file = sim->shape.data_file, .cipher = sim->cipher};

    image.data = data ? (ImageFile){data->data, data->size} : image.file;
    if (mem_backing)
        image.backing = (ImageFile){mem_backing->data, mem_backing->size};
    return image;
}

/* ---- Crashes, failures ---- */

void end_faults(Sim *sim)
{
    sim->faults_end = 0;
    mem_faults = mem_read_faults = 0;
    mem_limit = UINT64_C(1) << 30;
}

static void judge_name(const Sim *sim, const Image *image)
{
    char name[SIM_NAME_BYTES];

    image_backing_name(image, name, sizeof(name));
    if (sim->shape.backing && !str_eq(name, sim->names[0]) && !str_eq(name, sim->names[1]))
        sim_fail("the name of the backing file is '%s'", name);
}

typedef struct Crash {
    Sim *sim;
    bool power;
} Crash;

static void judge_sector(void *arg, uint64_t sector, const uint8_t *contents)
{
    const Crash *c = arg;

    if (!model_survives(&c->sim->model, sector, contents, c->power))
        sim_fail("after %s sector %" PRIu64 " holds %016" PRIx64 ", which may not be:%s",
            c->power ? "a power cut" : "the end of the process", sector, get_be64(contents),
            model_describe(&c->sim->model, sector));
}

/* What would be found if it all ended now. Returns the size of the disk. */
static uint64_t judge_crash(Sim *sim, const MemFile *file, const MemFile *data, bool power)
{
    Image image = image_of(sim, file, data);
    const Model *m = &sim->model;
    Crash crash = {sim, power};
    ImageFacts facts;
    uint64_t size;

    image_check(&image, false, &facts);
    size = facts.disk_size / SECTOR;
    if (size != m->size && size != m->other_size)
        sim_fail("after a crash the disk has %" PRIu64 " sectors, not %" PRIu64 " or %" PRIu64, size, m->size,
            m->other_size);
    image_sectors(&image, judge_sector, &crash);
    judge_name(sim, &image);
    bitmaps_judge_crash(sim, &image);
    return size;
}

static MemFile *take_file(const MemFile *file, bool power)
{
    MemFile *copy, *found;

    if (!file)
        return NULL;
    copy = power ? mem_file_cut(file) : mem_file_new(file->data, file->size, false);
    if (!power)
        return copy;
    found = mem_file_new(copy->data, copy->size, true);
    mem_file_free(copy);
    return found;
}

static void look_at_crash(Sim *sim, bool power)
{
    MemFile *file, *data;

    if (!power) {
        (void)judge_crash(sim, mem_file, mem_data_file, false);
        return;
    }
    file = mem_file_cut(mem_file);
    data = mem_data_file ? mem_file_cut(mem_data_file) : NULL;
    (void)judge_crash(sim, file, data, true);
    mem_file_free(file);
    mem_file_free(data);
}

/* What has reached the file is the kernel's, whether it was answered or not. */
static void leave_to_kernel(MemFile *file)
{
    for (size_t i = 0; file && i < file->write_count; i++)
        file->writes[i].completed = true;
}

/* A repair leaves nothing to be repaired, and the data as they were. */
static void judge_repaired(Sim *sim, const char *how)
{
    Image image = image_of(sim, mem_file, mem_data_file);
    ImageFacts facts;

    (void)judge_crash(sim, mem_file, mem_data_file, sim->power);
    image_check(&image, true, &facts);
    if (facts.dirty)
        sim_fail("repaired %s, the image is still dirty", how);
}

/* From now on the disk answers nobody; what is left of the engine unwinds. */
static void crash(Sim *sim)
{
    uint64_t size;

    sim->power = !one_in(3);
    say("%s", sim->power ? "POWER CUT" : "KILLED");
    if (sim->power) {
        sim->left_file = take_file(mem_file, true);
        sim->left_data = take_file(mem_data_file, true);
        size = judge_crash(sim, sim->left_file, sim->left_data, true);
        model_power_cut(&sim->model, size);
    } else {
        size = judge_crash(sim, mem_file, mem_data_file, false);
        model_killed(&sim->model, size);
        leave_to_kernel(mem_file);
        leave_to_kernel(mem_data_file);
    }
    happened(sim->power ? "a power cut" : "the end of the process");
    note(1, size, sim->power);
    sim->crashed = sim->over = mem_dead = true;
}

static void note_growth(const uint8_t *before, const uint8_t *now)
{
    if (get_be32(now + 56) > get_be32(before + 56))
        happened("growth of the refcount table");
    if (get_be32(now + 36) > get_be32(before + 36))
        happened("growth of the L1 table");
}

/* Mostly it is when the header changes that much depends on a few writes. */
static uint64_t looks_one_in(Sim *sim)
{
    if (mem_file->size >= sizeof(sim->head) && memcmp(sim->head, mem_file->data, sizeof(sim->head)) != 0) {
        note_growth(sim->head, mem_file->data);
        memcpy(sim->head, mem_file->data, sizeof(sim->head));
        sim->watch = 6;
    }
    if (sim->watch) {
        sim->watch--;
        return 2;
    }
    return sim->shape.grows ? 400 : sim->watched ? 12 : 60;
}

void simulate_step(Sim *sim)
{
    if (test_steps > MAX_STEPS)
        sim_fail("this does not come to an end");
    if (sim->faults_end && test_steps >= sim->faults_end) {
        say("the disk has recovered");
        end_faults(sim);
    }
    if (!sim->open || sim->crashed)
        return;
    if (test_steps == sim->crash_step)
        crash(sim);
    else if (sim->shape.crashes && sim->shape.cluster <= 64 * KIB && one_in(looks_one_in(sim)))
        look_at_crash(sim, one_in(2));
}

/* Before anybody opens it again. */
static void repair_closed(Sim *sim)
{
    AUTO_ERROR Error err = ERROR_INIT;
    CheckResult result = {0};
    Node *node;

    set_options(&sim->shape);
    node = test_open_for_check(false, &err);
    if (!node || driver_qcow2.check(node, CHECK_FIX_LEAKS | CHECK_FIX_ERRORS, &result, &err) < 0)
        sim_fail("an image cannot be repaired after a crash: %s", err.message);
    test_close(node);
    say("repaired, %" PRIu64 " leaks were there", result.leaks_fixed);
    if (result.leaks || result.corruptions || result.check_errors)
        sim_fail("a repair leaves %" PRIu64 " leaks and %" PRIu64 " corruptions", result.leaks,
            result.corruptions);
    sim->blemished = false;
    judge_repaired(sim, "offline");
    happened("repairing an image that nobody uses");
}

/* The host, or the daemon, is started again. */
void recover(Sim *sim)
{
    if (sim->node)
        test_close(sim->node);
    sim->node = NULL;
    end_faults(sim);
    mem_dead = false;
    sim->crashed = sim->open = false;
    sim->blemished = true;
    if (sim->power) {
        mem_file_free(mem_file);
        mem_file_free(mem_data_file);
        mem_file = TAKE(sim->left_file);
        mem_data_file = TAKE(sim->left_data);
    }
    if (one_in(4))
        repair_closed(sim);
}

/* ---- Opening and closing ---- */

/* What a killed process has left with the kernel may go with the host. */
static bool settle(Sim *sim)
{
    bool unsettled = false;

    for (unsigned i = 0; i < MAX_SNAPSHOTS; i++)
        unsettled |= sim->snapshots[i].state == STORED_MAYBE;
    for (unsigned i = 0; i < MAX_BITMAPS; i++)
        unsettled |= sim->bitmaps[i].state == STORED_MAYBE;
    return !unsettled || (one_in(2) && flush(sim) == 0);
}

static void compare_opened(Sim *sim, const MemFile *before)
{
    Image image = image_of(sim, before, mem_data_file);
    ImageFacts facts;
    bool settled;

    image_check(&image, false, &facts);
    if (facts.dirty && !sim->crashed) {
        judge_repaired(sim, "when it was opened");
        sim->blemished = false;
        happened("repairing a dirty image");
    }
    settled = settle(sim);
    if (sim->crashed)
        return;
    bitmaps_compare(sim, &image, settled);
    snapshots_compare(sim, settled);
}

void open_image(Sim *sim)
{
    MemFile *before = take_file(mem_file, false);
    AUTO_ERROR Error err = ERROR_INIT;

    end_faults(sim);
    set_options(&sim->shape);
    sim->excused = bitmaps_may_be_lost(sim);
    sim->failures = mem_failures;
    sim->resized = false;
    sim->open = true;
    sim->node = test_open(false, &err);
    if (!sim->node && !sim->crashed)
        sim_fail("the image cannot be opened: %s", err.message);
    if (sim->node && sim->node->size != sim->model.size * SECTOR)
        sim_fail("the disk has %" PRIu64 " bytes, not %" PRIu64, (uint64_t)sim->node->size,
            sim->model.size * SECTOR);
    if (!sim->crashed)
        compare_opened(sim, before);
    mem_file_free(before);
    if (!sim->crashed && !one_in(4))
        read_all(sim);
}

static void judge_closed_sector(void *arg, uint64_t sector, const uint8_t *contents)
{
    const Sim *sim = arg;

    if (!model_survives(&sim->model, sector, contents, true))
        sim_fail("closed, sector %" PRIu64 " holds %016" PRIx64 ":%s", sector, get_be64(contents),
            model_describe(&sim->model, sector));
}

void judge_closed(Sim *sim)
{
    Image image = image_of(sim, mem_file, mem_data_file);
    ImageFacts facts;

    image_check(&image, !sim->blemished && !sim->crowded, &facts);
    note(3, facts.leaks, mem_file->size);
    if (facts.snapshot_bytes > sim->shape.cluster)
        happened("a snapshot table of several clusters");
    image_sectors(&image, judge_closed_sector, sim);
    judge_name(sim, &image);
    image_backing_name(&image, sim->names[0], SIM_NAME_BYTES);
    strcpy(sim->names[1], sim->names[0]);
    sim->name_unsure = false;
    bitmaps_judge_closed(sim, &image);
}

/* Without failures, closing loses nothing; nor after a flush. */
void close_image(Sim *sim)
{
    bool sure = mem_failures == sim->failures;
    uint64_t failures;

    if (one_in(2))
        end_faults(sim);
    if (!sure)
        sure = flush(sim) == 0;
    failures = mem_failures;
    if (!sim->crashed)
        bitmaps_remember(sim);
    test_close(sim->node);
    sim->node = NULL;
    if (sim->crashed)
        return;
    sim->open = false;
    sure &= mem_failures == failures;
    sim->blemished |= mem_failures != sim->failures;
    say("closed, %s", sure ? "cleanly" : "after failures");
    if (sure) {
        model_closed(&sim->model);
        judge_closed(sim);
        happened("closing");
    } else {
        model_killed(&sim->model, judge_crash(sim, mem_file, mem_data_file, false));
    }
}
