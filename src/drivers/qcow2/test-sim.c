/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulator of the engine. A seed decides everything: the image, the requests of several coroutines, the
 * order in which the disk (test-graph.c, test-sched.c) completes its own, failures, power cuts, the end of
 * the process. A model (test-sim-model.c) knows what each sector may hold at each moment, and image files are
 * judged by code that is not the engine's (test-sim-image.c). A seed repeats its run exactly; the digest of
 * all that has happened tells.
 *
 *     test-qcow2-sim --seed N [--verbose]      one; --operations K stops after K operations
 *     test-qcow2-sim --seeds FROM..TO          many; --minutes M stops earlier
 *
 * A new operation is a function and a line in operations[].
 */
#include "base/log.h"
#include "base/mem.h"
#include "drivers/qcow2/test-sim.h"

#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define CHECKED_SEEDS 250 /* by `make check` */
#define BATCH 200         /* seeds that share a process, where one may end it */
#define MAX_WORKERS 8

/* ---- Trace, failure ---- */

static uint64_t digest;
static uint64_t current_seed;
static Sim *current;
static bool verbose, by_hand;

/* Takes part in the digest: may not depend on addresses or real time. */
void note(uint64_t a, uint64_t b, uint64_t c)
{
    const uint64_t words[] = {a, b, c};

    for (unsigned i = 0; i < ARRAY_SIZE(words); i++)
        digest = (digest ^ words[i]) * UINT64_C(0x9e3779b97f4a7c15), digest ^= digest >> 29;
}

/* What has been done well, over all seeds. */
static struct {
    const char *what;
    uint64_t times;
} deeds[64];

void happened(const char *what)
{
    unsigned i = 0;

    while (deeds[i].what && !str_eq(deeds[i].what, what))
        i++;
    assert_true(i < ARRAY_SIZE(deeds) - 1);
    deeds[i].what = what;
    deeds[i].times++;
}

void say(const char *fmt, ...)
{
    va_list args;

    if (!verbose)
        return;
    va_start(args, fmt);
    printf("%8" PRIu64 " ", test_steps);
    vprintf(fmt, args);
    printf("\n");
    va_end(args);
    fflush(stdout);
}

void sim_fail(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    fprintf(stderr, "seed %" PRIu64 ": ", current_seed);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fprintf(stderr, "\nrepeat it: test-qcow2-sim --seed %" PRIu64 " --operations %u --verbose\n",
        current_seed, current ? current->done : 0);
    abort();
}

/* ---- Lives ---- */

static void worker(void *arg)
{
    Sim *sim = arg;

    while (sim->left && !sim->over) {
        const Operation *op = draw_operation();

        if (op->alone)
            co_rwlock_write(&sim->lock);
        else
            co_rwlock_read(&sim->lock);
        if (sim->left && !sim->over) {
            sim->left--;
            sim->done++;
            sim->watched = op->alone;
            note(4, operation_number(op), test_steps);
            op->run(sim);
            sim->watched = false;
        }
        co_rwlock_unlock(&sim->lock);
    }
}

static void live(Sim *sim)
{
    unsigned workers = 1 + (unsigned)test_random(MAX_WORKERS);
    CoGroup group;

    sim->over = false;
    sim->crash_step = sim->shape.crashes ? test_steps + 1 + test_random(ANY_OF(20, 200, 2000)) : 0;
    open_image(sim);
    co_group_init(&group);
    for (unsigned i = 0; i < workers; i++)
        co_start(&group, "worker", worker, sim);
    co_group_join(&group);
    if (!sim->crashed)
        close_image(sim);
    if (sim->crashed)
        recover(sim);
}

static void run(void *arg)
{
    Sim *sim = arg;

    make_files(sim);
    while (sim->left)
        live(sim);
    sim->shape.crashes = false;
    live(sim);
}

static void on_step(void)
{
    simulate_step(current);
}

/* Returns the digest. */
static uint64_t run_seed(uint64_t seed, unsigned operation_limit)
{
    Sim sim = {0};
    uint64_t capacity;

    digest = seed;
    current_seed = seed;
    current = &sim;
    test_random_seed(seed);
    mem_corruptions = 0;
    mem_dead = mem_partial_faults = false;
    draw_shape(&sim.shape);
    capacity = sim.shape.sectors + sim.shape.sectors / 2;
    model_init(&sim.model, capacity, sim.shape.sectors);
    sim.next_value = 1;
    sim.left = 20 + (unsigned)test_random(ANY_OF(50, 150, 300));
    if (operation_limit)
        sim.left = MIN(sim.left, operation_limit);
    say("seed %" PRIu64 ": v%d cluster %" PRIu64 " refcounts %" PRIu64 "%s%s%s%s%s%s%s%s, %" PRIu64
        " sectors, %u operations",
        seed, sim.shape.v2 ? 2 : 3, sim.shape.cluster, sim.shape.refcount_bits,
        sim.shape.extended ? " extended" : "", sim.shape.backing ? " backing" : "",
        sim.shape.data_file ? " data-file" : "", sim.shape.raw ? " raw" : "", sim.shape.lazy ? " lazy" : "",
        sim.shape.encrypted ? " encrypted" : "", sim.shape.faults ? " faults" : "",
        sim.shape.crashes ? " crashes" : "", sim.shape.sectors, sim.left);
    test_on_step = on_step;
    test_run(run, &sim);
    test_on_step = NULL;
    end_faults(&sim);
    mem_file_free(TAKE(mem_file));
    mem_file_free(TAKE(mem_data_file));
    mem_file_free(TAKE(mem_backing));
    mem_options = (BlockdevOptionsQcow2){0};
    snapshots_forget(&sim);
    bitmaps_forget(&sim);
    model_done(&sim.model);
    sector_cipher_free(sim.cipher);
    current = NULL;
    return digest;
}

/* ---- By hand ---- */

typedef struct Request {
    uint64_t from, to, minutes;
    unsigned operations;
} Request;

static void run_batch(uint64_t from, uint64_t to, _Atomic uint64_t *at, unsigned operation_limit)
{
    for (uint64_t seed = from; seed <= to; seed++) {
        uint64_t result;

        *at = seed;
        result = run_seed(seed, operation_limit);
        if (verbose || (by_hand && from == to))
            printf("seed %" PRIu64 " digest %016" PRIx64 "\n", seed, result);
    }
}

/* In a process of its own, which an assertion or a sanitizer may end. True: all is well. */
static bool run_apart(uint64_t from, uint64_t to, uint64_t *ret_at, unsigned operation_limit)
{
    _Atomic uint64_t *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t child;
    int status = 0;

    fflush(NULL);
    child = fork();
    if (child == 0) {
        run_batch(from, to, at, operation_limit);
        fflush(NULL);
        _exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0)
        return false;
    *ret_at = *at;
    munmap((void *)at, 4096);
    return status == 0;
}

/* The least number of operations after which it still fails. */
static unsigned shrink(uint64_t seed)
{
    unsigned good = 0, bad = 400;
    uint64_t at;

    while (bad - good > 1) {
        unsigned middle = (good + bad) / 2;

        if (run_apart(seed, seed, &at, middle))
            good = middle;
        else
            bad = middle;
    }
    return bad;
}

static int run_many(const Request *q)
{
    time_t started = time(NULL), end = started + (time_t)(q->minutes * 60);
    uint64_t failed = 0, at = q->from;

    for (uint64_t from = q->from; from <= q->to && (!q->minutes || time(NULL) < end); from += BATCH) {
        uint64_t to = MIN(from + BATCH - 1, q->to);

        while (from <= to && !run_apart(from, to, &at, q->operations)) {
            fprintf(stderr, "FAILED: test-qcow2-sim --seed %" PRIu64 " --operations %u --verbose\n", at,
                shrink(at));
            failed++;
            from = at + 1;
        }
        from = to + 1 - BATCH;
        printf("\rseeds up to %" PRIu64 " in %ld s, %" PRIu64 " failed ", to, (long)(time(NULL) - started),
            failed);
        fflush(stdout);
    }
    printf("\n");
    return failed != 0;
}

static int main_by_hand(int argc, char **argv)
{
    Request q = {.from = 1, .to = UINT64_MAX - BATCH};
    _Atomic uint64_t at;
    bool single = false;

    by_hand = true;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";

        if (str_eq(argv[i], "--verbose")) {
            verbose = true;
            continue;
        }
        i++;
        if (str_eq(argv[i - 1], "--seed")) {
            q.from = q.to = strtoull(value, NULL, 0);
            single = true;
        } else if (str_eq(argv[i - 1], "--seeds") &&
                   sscanf(value, "%" SCNu64 "..%" SCNu64, &q.from, &q.to) == 2) {
            continue;
        } else if (str_eq(argv[i - 1], "--minutes")) {
            q.minutes = strtoull(value, NULL, 0);
        } else if (str_eq(argv[i - 1], "--operations")) {
            q.operations = (unsigned)strtoul(value, NULL, 0);
        } else {
            fprintf(stderr,
                "usage: %s [--seed N | --seeds FROM..TO] [--minutes M] [--operations K] [--verbose]\n",
                argv[0]);
            return 2;
        }
    }
    if (!single)
        return run_many(&q);
    run_batch(q.from, q.to, &at, q.operations);
    return 0;
}

/* ---- As a test ---- */

static uint64_t times_of(const char *what)
{
    for (unsigned i = 0; deeds[i].what; i++)
        if (str_eq(deeds[i].what, what))
            return deeds[i].times;
    return 0;
}

/* What has to happen and has not yet, or NULL. */
static const char *missing(void)
{
    static const char *const wanted[] = {"write", "compressed write", "write_zeroes", "discard", "flush",
        "read", "status", "resize", "growth with preallocation", "growth of the L1 table",
        "growth of the refcount table", "closing", "check", "repairing a dirty image",
        "repairing an image that nobody uses", "stopping to write", "reopening with other options",
        "read-only", "making a snapshot", "removing a snapshot", "applying a snapshot",
        "a snapshot table of several clusters", "adding a bitmap", "removing a bitmap", "clearing a bitmap",
        "merging bitmaps", "enabling a bitmap", "disabling a bitmap", "changing the backing file",
        "a failure of the disk", "time", "a power cut", "the end of the process"};

    for (unsigned i = 0; i < ARRAY_SIZE(wanted); i++)
        if (!times_of(wanted[i]))
            return wanted[i];
    return NULL;
}

/* These seeds are worth as much as what they do. What is rare moves to other seeds with each change of the
 * engine: it is waited for a while. */
static void test_seeds(void **state)
{
    uint64_t seed = 1;

    while (seed <= CHECKED_SEEDS || (missing() && seed <= 10 * CHECKED_SEEDS))
        (void)run_seed(seed++, 0);
    if (missing())
        fail_msg("nothing of this has happened: %s", missing());
}

/* Other memory, the same events. */
static void test_repeats(void **state)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        uint64_t first = run_seed(seed, 0);
        AUTO_FREE uint8_t *moved = mem_zalloc(100000 + seed * 512);

        (void)moved;
        assert_int_equal(run_seed(seed, 0), first);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_seeds), cmocka_unit_test(test_repeats)};

    log_use_syslog(); /* what a check has to say */
    /* Memory is taken and given back thousands of times a second: not from the kernel each time. */
    (void)mallopt(M_MMAP_THRESHOLD, 1 << 30);
    (void)mallopt(M_TRIM_THRESHOLD, 1 << 30);
    return argc > 1 ? main_by_hand(argc, argv) : cmocka_run_group_tests(tests, NULL, NULL);
}
