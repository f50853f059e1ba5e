/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mappings that survive the truncation of their file.
 *
 * The table of live mappings is read by the signal handler, which can interrupt anything: it consists of
 * chunks that are added and never removed, and each slot has a version that is odd while the slot changes.
 * The slot of the mapping that was touched cannot change meanwhile, because only a mapping that nobody
 * touches is taken down; the version keeps the handler from mistaking halves of two others for it.
 *
 * Trap: a signal that is blocked in the thread that caused it ends the process.
 */
#include "virtio/mapping.h"

#include "base/mem.h"

#include <inttypes.h>
#include <linux/magic.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define CHUNK_SLOTS 64

struct MappingSlot {
    uint32_t version;
    uintptr_t start, end; /* 0: free */
    uintptr_t page;
    bool *lost;
};

typedef struct Chunk {
    struct Chunk *next;
    MappingSlot slots[CHUNK_SLOTS];
} Chunk;

static Chunk first_chunk;
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction previous_action;

static void slot_set(MappingSlot *slot, uintptr_t start, uintptr_t end, uintptr_t page, bool *lost)
{
    __atomic_store_n(&slot->version, slot->version + 1, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->start, start, __ATOMIC_RELEASE);
    __atomic_store_n(&slot->end, end, __ATOMIC_RELEASE);
    __atomic_store_n(&slot->page, page, __ATOMIC_RELEASE);
    __atomic_store_n(&slot->lost, lost, __ATOMIC_RELEASE);
    __atomic_store_n(&slot->version, slot->version + 1, __ATOMIC_RELEASE);
}

/* Copies a slot; false if it is changing. */
static bool slot_get(MappingSlot *slot, MappingSlot *ret_copy)
{
    uint32_t version = __atomic_load_n(&slot->version, __ATOMIC_ACQUIRE);

    ret_copy->start = __atomic_load_n(&slot->start, __ATOMIC_ACQUIRE);
    ret_copy->end = __atomic_load_n(&slot->end, __ATOMIC_ACQUIRE);
    ret_copy->page = __atomic_load_n(&slot->page, __ATOMIC_ACQUIRE);
    ret_copy->lost = __atomic_load_n(&slot->lost, __ATOMIC_ACQUIRE);
    return version % 2 == 0 && __atomic_load_n(&slot->version, __ATOMIC_RELAXED) == version;
}

static MappingSlot *slot_take(uintptr_t start, uintptr_t end, uintptr_t page, bool *lost)
{
    MappingSlot *found = NULL;
    Chunk *chunk = &first_chunk;

    pthread_mutex_lock(&table_lock);
    for (;;) {
        for (unsigned i = 0; i < CHUNK_SLOTS && !found; i++)
            if (!chunk->slots[i].start)
                found = &chunk->slots[i];
        if (found)
            break;
        if (!chunk->next)
            __atomic_store_n(&chunk->next, mem_new(Chunk), __ATOMIC_RELEASE);
        chunk = chunk->next;
    }
    slot_set(found, start, end, page, lost);
    pthread_mutex_unlock(&table_lock);
    return found;
}

static void slot_release(MappingSlot *slot)
{
    pthread_mutex_lock(&table_lock);
    slot_set(slot, 0, 0, 0, NULL);
    pthread_mutex_unlock(&table_lock);
}

/* In the signal handler. False if the address is in none of our mappings or no page is to be had. */
static bool replace_page(uintptr_t address)
{
    for (Chunk *chunk = &first_chunk; chunk; chunk = __atomic_load_n(&chunk->next, __ATOMIC_ACQUIRE)) {
        for (unsigned i = 0; i < CHUNK_SLOTS; i++) {
            MappingSlot slot;
            void *page;

            if (!slot_get(&chunk->slots[i], &slot) || address < slot.start || address >= slot.end)
                continue;
            page = (void *)(address & ~(slot.page - 1));
            __atomic_store_n(slot.lost, true, __ATOMIC_RELEASE);
            return mmap(page, slot.page, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED;
        }
    }
    return false;
}

/* To whoever had the signal before; by default the instruction is tried again and ends the process. */
static void pass_on(int number, siginfo_t *info, void *context)
{
    if (previous_action.sa_flags & SA_SIGINFO) {
        previous_action.sa_sigaction(number, info, context);
        return;
    }
    if (previous_action.sa_handler != SIG_DFL && previous_action.sa_handler != SIG_IGN) {
        previous_action.sa_handler(number);
        return;
    }
    if (info->si_code <= 0 && previous_action.sa_handler == SIG_IGN)
        return;
    signal(number, SIG_DFL);
    if (info->si_code <= 0)
        raise(number);
}

static void handle_sigbus(int number, siginfo_t *info, void *context)
{
    int saved = errno;
    bool page_is_gone =
        info->si_code == BUS_ADRERR || info->si_code == BUS_OBJERR || info->si_code == BUS_MCEERR_AR;

    if (!page_is_gone || !replace_page((uintptr_t)info->si_addr))
        pass_on(number, info, context);
    errno = saved;
}

/* Libraries have been seen to take the signal for a while and to give it back to nobody. */
static void install_handler(void)
{
    struct sigaction action = {
        .sa_sigaction = handle_sigbus, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
    struct sigaction now;

    pthread_mutex_lock(&table_lock);
    sigaction(SIGBUS, NULL, &now);
    if (!(now.sa_flags & SA_SIGINFO) || now.sa_sigaction != handle_sigbus) {
        previous_action = now;
        sigaction(SIGBUS, &action, NULL);
    }
    pthread_mutex_unlock(&table_lock);
}

/* How a mapping of the file has to be aligned. */
static size_t page_bytes(int fd)
{
    struct statfs fs;

    if (fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC)
        return (size_t)fs.f_bsize;
    return (size_t)sysconf(_SC_PAGESIZE);
}

static int check_file(int fd, uint64_t offset, uint64_t bytes, Error *err)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return err_set_errno(err, -errno, "cannot look at the file of shared memory");
    if (bytes == 0 || out_of_range(offset, bytes, INT64_MAX - 2 * GIB) || bytes > SIZE_MAX / 2)
        return err_set(err, -EINVAL,
            "%#" PRIx64 " bytes of shared memory at offset %#" PRIx64 " of its file cannot be", bytes,
            offset);
    /* What is not a regular file has no size that could be compared. */
    if (S_ISREG(st.st_mode) && out_of_range(offset, bytes, (uint64_t)st.st_size))
        return err_set(err, -EINVAL,
            "%#" PRIx64 " bytes of shared memory at offset %#" PRIx64
            " lie behind the end of their file (%#" PRIx64 " bytes)",
            bytes, offset, (uint64_t)st.st_size);
    return 0;
}

int mapping_init(Mapping *mapping, int fd, uint64_t offset, uint64_t bytes, bool *lost, Error *err)
{
    uint64_t start, length, page;
    void *at;
    int r;

    r = check_file(fd, offset, bytes, err);
    if (r < 0)
        return r;
    install_handler();
    page = page_bytes(fd);
    start = align_down(offset, page);
    length = align_up(offset - start + bytes, page);
    at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t)start);
    if (at == MAP_FAILED)
        return err_set_errno(err, -errno, "cannot map %#" PRIx64 " bytes of shared memory", bytes);
    madvise(at, length, MADV_DONTDUMP); /* it is the front end's, and large */
    *mapping = (Mapping){
        .at = (char *)at + (offset - start),
        .bytes = bytes,
        .start = at,
        .length = length,
        .slot = slot_take((uintptr_t)at, (uintptr_t)at + length, page, lost),
    };
    return 0;
}

void mapping_done(Mapping *mapping)
{
    if (mapping->slot) {
        slot_release(mapping->slot);
        munmap(mapping->start, mapping->length);
    }
    *mapping = (Mapping){0};
}
