/* SPDX-License-Identifier: Apache-2.0 */
/* Files may be read and written on several loops at once, word by word, as the kernel does with a real one:
 * nothing here orders what the loops do. A file that several loops use must not be recorded nor grow beyond
 * what was reserved. */
#include "drivers/qcow2/test-graph.h"

#include "base/mem.h"
#include "crypto/secret.h"
#include "drivers/qcow2/test-bitmaps.h"
#include "generated/types.h"

#define SECTOR UINT64_C(512)

extern const Driver driver_qcow2;

struct Edge {
    Node *node;
    MemFile *mem;
    Edge *next; /* of the same parent */
};

/* What a write request has put into the log. */
typedef struct MemFlight {
    uint64_t numbers[2];
    unsigned count;
} MemFlight;

/* Here, a parent's private part is only the list of its edges. */
struct NodePrivate {
    Edge *children;
};

MemFile *mem_file, *mem_data_file, *mem_backing;
BlockdevOptionsQcow2 mem_options;
uint64_t mem_limit = UINT64_C(1) << 30;
bool mem_yields = true, mem_partial_faults, mem_dead, mem_device;
unsigned mem_corruptions, mem_faults, mem_read_faults;
uint64_t mem_failures;
static __thread uint64_t random_state = 1;
static uint64_t write_number;

/* ---- Random numbers ---- */

void test_random_seed(uint64_t seed)
{
    random_state = seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
}

uint64_t test_random(uint64_t below)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return below ? (random_state >> 11) % below : 0;
}

static int fail(int error)
{
    mem_failures++;
    return error;
}

static bool happens(unsigned of_thousand)
{
    return of_thousand && test_random(1000) < of_thousand;
}

/* ---- Files ---- */

void mem_file_reserve(MemFile *file, uint64_t size)
{
    uint64_t capacity = MAX(file->capacity, UINT64_C(65536));

    while (capacity < size)
        capacity *= 2;
    if (capacity == file->capacity)
        return;
    file->data = mem_realloc(file->data, capacity);
    memset(file->data + file->capacity, 0, capacity - file->capacity);
    if (file->durable) {
        uint64_t sectors = capacity / SECTOR, had = file->capacity / SECTOR;

        file->durable = mem_realloc(file->durable, capacity);
        memset(file->durable + file->capacity, 0, capacity - file->capacity);
        file->durable_number = mem_realloc(file->durable_number, sectors * sizeof(uint64_t));
        memset(file->durable_number + had, 0, (sectors - had) * sizeof(uint64_t));
    }
    file->capacity = capacity;
}

MemFile *mem_file_new(const void *data, uint64_t size, bool record)
{
    MemFile *file = mem_new(MemFile);

    file->capacity = align_up(MAX(size, UINT64_C(4096)), 4096);
    file->data = mem_zalloc(file->capacity);
    if (record) {
        file->durable = mem_zalloc(file->capacity);
        file->durable_number = mem_zalloc(file->capacity / SECTOR * sizeof(uint64_t));
    }
    file->size = file->durable_size = size;
    if (size) {
        memcpy(file->data, data, size);
        if (record)
            memcpy(file->durable, data, size);
    }
    return file;
}

static void forget_write(MemFile *file, size_t i)
{
    free(file->writes[i].data);
    memmove(&file->writes[i], &file->writes[i + 1], (file->write_count - i - 1) * sizeof(*file->writes));
    file->write_count--;
}

void mem_file_free(MemFile *file)
{
    if (!file)
        return;
    while (file->write_count)
        forget_write(file, file->write_count - 1);
    free(file->writes);
    free(file->data);
    free(file->durable);
    free(file->durable_number);
    free(file);
}

/* A sector of a write is on the disk for good: so are all that came before it. */
static void make_durable(MemFile *file, const MemWrite *w)
{
    for (uint64_t at = 0; at < w->bytes; at += SECTOR) {
        uint64_t sector = (w->offset + at) / SECTOR;

        if (file->durable_number[sector] >= w->number)
            continue;
        file->durable_number[sector] = w->number;
        memcpy(file->durable + w->offset + at, w->data + at, SECTOR);
    }
    file->durable_size = MAX(file->durable_size, w->file_size);
}

MemFile *mem_file_cut(const MemFile *file)
{
    static const unsigned chances[] = {0, 10, 33, 50, 67, 90, 100};
    unsigned chance = chances[test_random(ARRAY_SIZE(chances))], whole = (unsigned)test_random(101);
    MemFile *cut = mem_file_new(file->durable, file->size, false);
    uint64_t end = file->durable_size;

    for (size_t i = 0; i < file->write_count; i++) {
        const MemWrite *w = &file->writes[i];
        bool torn = test_random(100) >= whole, kept = test_random(100) < chance;

        for (uint64_t at = 0; at < w->bytes; at += SECTOR) {
            uint64_t sector = (w->offset + at) / SECTOR;

            if (torn)
                kept = test_random(100) < chance;
            if (!kept || file->durable_number[sector] >= w->number || (sector + 1) * SECTOR > cut->capacity)
                continue;
            memcpy(cut->data + w->offset + at, w->data + at, SECTOR);
            end = MAX(end, MIN((sector + 1) * SECTOR, w->file_size));
        }
    }
    /* What only the size says that it is there may be missing. */
    if (end < cut->size && test_random(2))
        cut->size = end;
    return cut;
}

/* The sectors that a write has changed, with all that they hold now. Returns its number. */
static uint64_t record(MemFile *file, uint64_t offset, uint64_t bytes)
{
    uint64_t start = align_down(offset, SECTOR), end = align_up(offset + bytes, SECTOR);
    MemWrite *w;

    if (!file->durable || !bytes)
        return 0;
    VEC_GROW(file->writes, file->write_count, file->write_capacity);
    w = &file->writes[file->write_count++];
    *w = (MemWrite){.offset = start,
        .bytes = end - start,
        .data = mem_zalloc(end - start),
        .number = ++write_number,
        .file_size = file->size};
    memcpy(w->data, file->data + start, end - start);
    return w->number;
}

/* ---- Requests ---- */

#define PIECE_BYTES 4096

/* Copies to or from a file: words of the file at once, what does not fill one bytewise. */
static void copy_atomically(uint8_t *file, uint8_t *own, size_t bytes, bool to_file)
{
    size_t i = 0;

    if (is_aligned((uintptr_t)file, 8)) {
        for (uint64_t word; i + 8 <= bytes; i += 8) {
            if (to_file) {
                memcpy(&word, own + i, 8);
                __atomic_store_n((uint64_t *)(file + i), word, __ATOMIC_RELAXED);
            } else {
                word = __atomic_load_n((uint64_t *)(file + i), __ATOMIC_RELAXED);
                memcpy(own + i, &word, 8);
            }
        }
    }
    for (; i < bytes; i++) {
        if (to_file)
            __atomic_store_n(file + i, own[i], __ATOMIC_RELAXED);
        else
            own[i] = __atomic_load_n(file + i, __ATOMIC_RELAXED);
    }
}

static void copy_from_file(const MemFile *file, uint64_t offset, IoSlice dst)
{
    uint8_t piece[PIECE_BYTES];

    for (size_t done = 0; done < dst.bytes; done += PIECE_BYTES) {
        size_t bytes = MIN(dst.bytes - done, sizeof(piece));

        copy_atomically(file->data + offset + done, piece, bytes, false);
        io_slice_copy_to(io_slice_part(dst, done, bytes), piece, bytes);
    }
}

/* Where a request is cut in two, between which others may come; mostly it is not. */
static size_t split_at(const MemFile *file, uint64_t offset, size_t bytes)
{
    uint64_t first = align_up(offset + 1, SECTOR), last = align_down(offset + bytes - 1, SECTOR);

    if (!file->durable || !mem_yields || !bytes || first > last || test_random(8))
        return bytes;
    return first + test_random((last - first) / SECTOR + 1) * SECTOR - offset;
}

int edge_read(Edge *edge, uint64_t offset, IoSlice dst)
{
    MemFile *file = edge->mem;
    size_t first;

    if (out_of_range(offset, dst.bytes, file->size))
        return -EIO;
    test_pause();
    if (mem_dead || happens(mem_read_faults))
        return fail(-EIO);
    first = split_at(file, offset, dst.bytes);
    copy_from_file(file, offset, io_slice_part(dst, 0, first));
    if (first < dst.bytes) {
        test_pause();
        copy_from_file(file, offset + first, io_slice_part(dst, first, dst.bytes - first));
    }
    test_pause();
    return 0;
}

static void copy_to_file(MemFile *file, uint64_t offset, IoSlice src)
{
    uint8_t piece[PIECE_BYTES];

    for (size_t done = 0; done < src.bytes; done += PIECE_BYTES) {
        size_t bytes = MIN(src.bytes - done, sizeof(piece));

        io_slice_copy_from(io_slice_part(src, done, bytes), piece, bytes);
        copy_atomically(file->data + offset + done, piece, bytes, true);
    }
}

/* One part of a write reaches the file. */
static void write_part(Edge *edge, uint64_t offset, IoSlice src, MemFlight *flight)
{
    MemFile *file = edge->mem;

    mem_file_reserve(file, offset + src.bytes);
    copy_to_file(file, offset, src);
    if (offset + src.bytes > file->size)
        file->size = edge->node->size = offset + src.bytes;
    flight->numbers[flight->count++] = record(file, offset, src.bytes);
}

static int write_parts(Edge *edge, uint64_t offset, IoSlice src, MemFlight *flight)
{
    size_t first = split_at(edge->mem, offset, src.bytes);
    bool fails = happens(mem_faults);

    if (fails && !mem_partial_faults)
        return fail(-EIO);
    write_part(edge, offset, io_slice_part(src, 0, first), flight);
    if (fails)
        return fail(-EIO);
    if (first == src.bytes)
        return 0;
    test_pause();
    if (mem_dead)
        return fail(-EIO);
    write_part(edge, offset + first, io_slice_part(src, first, src.bytes - first), flight);
    return 0;
}

static void end_flight(MemFile *file, const MemFlight *flight, bool durable)
{
    for (size_t i = 0; i < file->write_count; i++) {
        MemWrite *w = &file->writes[i];

        if (w->number != flight->numbers[0] && w->number != flight->numbers[1])
            continue;
        w->completed = true;
        if (durable)
            make_durable(file, w);
    }
}

int edge_write(Edge *edge, uint64_t offset, IoSlice src, unsigned flags)
{
    MemFlight flight = {0};
    int r;

    test_pause();
    if (mem_dead)
        return fail(-EIO);
    if (offset > mem_limit || src.bytes > mem_limit - offset)
        return fail(-ENOSPC);
    r = write_parts(edge, offset, src, &flight);
    test_pause();
    if (mem_dead)
        return fail(-EIO);
    end_flight(edge->mem, &flight, r == 0 && (flags & REQ_FUA));
    return r;
}

int edge_pread(Edge *edge, uint64_t offset, void *data, size_t bytes)
{
    struct iovec iov;

    return edge_read(edge, offset, io_slice_of(&iov, data, bytes));
}

int edge_pwrite(Edge *edge, uint64_t offset, const void *data, size_t bytes, unsigned flags)
{
    struct iovec iov;

    return edge_write(edge, offset, io_slice_of(&iov, (void *)data, bytes), flags);
}

int edge_write_zeroes(Edge *edge, uint64_t offset, uint64_t bytes, unsigned flags)
{
    AUTO_FREE uint8_t *zeroes = bytes <= mem_limit ? mem_try_zalloc(1, bytes) : NULL;

    return zeroes ? edge_pwrite(edge, offset, zeroes, bytes, flags & REQ_FUA) : fail(-ENOSPC);
}

int edge_discard(Edge *edge, uint64_t offset, uint64_t bytes)
{
    return edge_write_zeroes(edge, offset, bytes, 0);
}

int edge_flush(Edge *edge)
{
    MemFile *file = edge->mem;
    uint64_t size = file->size;
    size_t kept = 0;

    if (mem_dead || happens(mem_faults))
        return fail(-EIO);
    if (!file->durable) {
        test_pause();
        return 0;
    }
    /* What is complete now. */
    for (size_t i = 0; i < file->write_count; i++)
        file->writes[i].covered |= file->writes[i].completed;
    test_pause();
    if (mem_dead)
        return fail(-EIO);
    for (size_t i = 0; i < file->write_count; i++) {
        MemWrite *w = &file->writes[i];

        if (w->covered) {
            make_durable(file, w);
            free(w->data);
        } else {
            file->writes[kept++] = *w;
        }
    }
    file->write_count = kept;
    file->durable_size = MAX(file->durable_size, size);
    return 0;
}

int edge_status(Edge *edge, uint64_t offset, uint64_t bytes, BlockStatus *ret_status)
{
    *ret_status = (BlockStatus){.bytes = bytes, .flags = BLOCK_STATUS_DATA};
    return 0;
}

int edge_status_above(Edge *edge, uint64_t offset, uint64_t bytes, BlockStatus *ret_status)
{
    *ret_status = (BlockStatus){.bytes = bytes, .flags = BLOCK_STATUS_DATA};
    return 0;
}

/* Durable at once. */
static void truncate_file(MemFile *file, uint64_t size)
{
    memset(file->data + size, 0, file->size - size);
    if (!file->durable)
        return;
    memset(file->durable + size, 0, file->capacity - size);
    for (uint64_t sector = size / SECTOR; sector < file->capacity / SECTOR; sector++)
        file->durable_number[sector] = write_number;
    file->durable_size = MIN(file->durable_size, size);
}

int edge_resize(Edge *edge, uint64_t size, bool exact, Preallocation prealloc, unsigned flags, Error *err)
{
    if (size > mem_limit && size > edge->mem->size)
        return err_set(err, fail(-ENOSPC), "too large");
    if (mem_device && size < edge->mem->size)
        return err_set(err, -ENOTSUP, "a device has its size");
    mem_file_reserve(edge->mem, size);
    if (size < edge->mem->size)
        truncate_file(edge->mem, size);
    edge->mem->size = edge->node->size = size;
    return 0;
}

/* ---- Secrets: there are no objects here, a secret is its own id ---- */

uint8_t *secret_alloc(size_t bytes)
{
    return mem_zalloc(bytes + 1);
}

void secret_free(uint8_t *data, size_t bytes)
{
    free(data);
}

int secret_lookup(const char *id, uint8_t **ret_data, size_t *ret_bytes, Error *err)
{
    *ret_bytes = strlen(id);
    *ret_data = (uint8_t *)str_dup(id);
    return 0;
}

/* ---- Nodes ---- */

static const Driver memory_driver = {.name = "memory"};

static Edge *edge_new(MemFile *mem)
{
    Edge *edge = mem_new(Edge);

    edge->node = mem_new(Node);
    edge->node->driver = &memory_driver;
    edge->node->size = mem->size;
    edge->mem = mem;
    return edge;
}

Node *edge_node(const Edge *edge)
{
    return edge->node;
}

uint64_t node_size(const Node *node)
{
    return node->size;
}

const Driver *node_driver(const Node *node)
{
    return node->driver;
}

void edge_close(Edge *edge)
{
    if (!edge)
        return;
    free(edge->node);
    free(edge);
}

int edge_open(Node *node, const EdgeUser *user, void *opaque, unsigned perm, unsigned shared, Edge **ret_edge,
    Error *err)
{
    *ret_edge = edge_new(mem_file);
    return 0;
}

Node *node_find(const char *name)
{
    static Node dummy;

    return &dummy;
}

int node_open(const BlockdevOptions *options, Node **ret_node, Error *err)
{
    return err_set(err, -ENOTSUP, "not in this graph");
}

int node_open_child(
    Node *node, const char *name, const BlockdevRef *ref, unsigned roles, Edge **ret_edge, Error *err)
{
    MemFile *mem = str_eq(name, "file") ? mem_file : str_eq(name, "backing") ? mem_backing : mem_data_file;
    Edge *edge;

    if (!mem)
        return err_set(err, -ENOENT, "no such file");
    edge = edge_new(mem);
    edge->next = node->private->children;
    node->private->children = edge;
    if (roles & EDGE_PRIMARY)
        node->file = edge;
    if (roles & EDGE_COW)
        node->backing = edge;
    if (ret_edge)
        *ret_edge = edge;
    return 0;
}

int node_open_child_file(Node *node, const char *name, const char *filename, const char *format,
    unsigned roles, Edge **ret_edge, Error *err)
{
    return node_open_child(node, name, NULL, roles, ret_edge, err);
}

char *node_resolve_path(Node *node, const char *stored, Error *err)
{
    return str_dup(stored);
}

void node_report_corruption(Node *node, bool fatal, int64_t offset, int64_t size, const char *message)
{
    mem_corruptions++;
}

static Node *open_image(bool read_only, bool for_check, Error *err)
{
    BlockdevRef file = {.type = BLOCKDEV_REF_KIND_REFERENCE, .u.reference = (char *)"file"};
    BlockdevOptions options = {.u.qcow2 = mem_options};
    Node *node = mem_new(Node);

    options.u.qcow2.file = &file;
    node->driver = &driver_qcow2;
    node->state = mem_zalloc(driver_qcow2.state_size);
    node->home = loop_current();
    node->private = mem_new(struct NodePrivate);
    node->read_only = read_only;
    node->for_check = for_check;
    node->discard_unmap = true;
    if (driver_qcow2.open(node, &options, err) < 0) {
        test_close(node);
        return NULL;
    }
    return node;
}

Node *test_open(bool read_only, Error *err)
{
    return open_image(read_only, false, err);
}

Node *test_open_for_check(bool read_only, Error *err)
{
    return open_image(read_only, true, err);
}

void test_close(Node *node)
{
    const Qcow2 *q = node->state;

    if (q->node)
        driver_qcow2.close(node);
    while (node->private->children) {
        Edge *edge = node->private->children;

        node->private->children = edge->next;
        edge_close(edge);
    }
    test_bitmaps_free(node);
    free(node->private);
    free(node->backing_filename);
    free(node->backing_format);
    free(node->state);
    free(node);
}
