/* SPDX-License-Identifier: Apache-2.0 */
/* Files may be read and written on several loops at once, word by word, as the kernel does with a real one:
 * nothing here orders what the loops do. A file that several loops use must not be recorded nor grow beyond
 * what was reserved. */
#include "drivers/qcow2/test-graph.h"

#include "base/mem.h"
#include "generated/types.h"

extern const Driver driver_qcow2;

struct Edge {
    Node *node;
    MemFile *mem;
    Edge *next; /* of the same parent */
};

/* Here, a parent's private part is only the list of its edges. */
struct NodePrivate {
    Edge *children;
};

MemFile *mem_file, *mem_data_file, *mem_backing;
BlockdevOptionsQcow2 mem_options;
uint64_t mem_limit = UINT64_C(1) << 30;
bool mem_yields = true;
unsigned mem_corruptions, mem_faults;
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

void test_pause(void)
{
    uint64_t turns = test_random(100) ? test_random(4) : 2000; /* now and then the disk is slow */

    for (uint64_t n = mem_yields ? turns : 0; n; n--)
        (void)!co_yield ();
}

static bool fails(void)
{
    return mem_faults && test_random(1000) < mem_faults;
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
        file->durable = mem_realloc(file->durable, capacity);
        memset(file->durable + file->capacity, 0, capacity - file->capacity);
    }
    file->capacity = capacity;
}

MemFile *mem_file_new(const void *data, uint64_t size, bool record)
{
    MemFile *file = mem_new(MemFile);

    if (record)
        file->durable = mem_zalloc(1);
    mem_file_reserve(file, size);
    file->size = size;
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
    free(file);
}

/* Applies a write, or with tear any of its sectors. */
static void replay(uint8_t *data, const MemWrite *w, bool tear)
{
    for (uint64_t at = 0; at < w->bytes;) {
        uint64_t bytes = MIN(w->bytes - at, 512 - (w->offset + at) % 512);

        if (!tear || test_random(2))
            memcpy(data + w->offset + at, w->data + at, bytes);
        at += bytes;
    }
}

MemFile *mem_file_cut(const MemFile *file)
{
    MemFile *cut = mem_file_new(file->durable, file->size, false);

    for (size_t i = 0; i < file->write_count; i++) {
        unsigned fate = (unsigned)test_random(3);

        if (fate)
            replay(cut->data, &file->writes[i], fate == 1);
    }
    return cut;
}

static void record(MemFile *file, uint64_t offset, const uint8_t *data, uint64_t bytes)
{
    MemWrite *w;

    if (!file->durable)
        return;
    VEC_GROW(file->writes, file->write_count, file->write_capacity);
    w = &file->writes[file->write_count++];
    *w = (MemWrite){.offset = offset, .bytes = bytes, .data = mem_zalloc(bytes), .number = ++write_number};
    memcpy(w->data, data, bytes);
}

/* Writes move while others complete: found again by their number. */
static void complete(MemFile *file, uint64_t number)
{
    for (size_t i = 0; i < file->write_count; i++)
        if (file->writes[i].number == number)
            file->writes[i].completed = true;
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

int edge_read(Edge *edge, uint64_t offset, IoSlice dst)
{
    uint8_t piece[PIECE_BYTES];

    if (out_of_range(offset, dst.bytes, edge->mem->size))
        return -EIO;
    test_pause();
    for (size_t done = 0; done < dst.bytes; done += PIECE_BYTES) {
        size_t bytes = MIN(dst.bytes - done, sizeof(piece));

        copy_atomically(edge->mem->data + offset + done, piece, bytes, false);
        io_slice_copy_to(io_slice_part(dst, done, bytes), piece, bytes);
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

int edge_write(Edge *edge, uint64_t offset, IoSlice src, unsigned flags)
{
    MemFile *file = edge->mem;
    uint64_t number = 0;

    test_pause();
    if (fails())
        return -EIO;
    if (offset > mem_limit || src.bytes > mem_limit - offset)
        return -ENOSPC;
    mem_file_reserve(file, offset + src.bytes);
    copy_to_file(file, offset, src);
    if (offset + src.bytes > file->size)
        file->size = edge->node->size = offset + src.bytes;
    record(file, offset, file->data + offset, src.bytes);
    if (file->write_count)
        number = file->writes[file->write_count - 1].number;
    test_pause();
    complete(file, number);
    return flags & REQ_FUA ? edge_flush(edge) : 0;
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

    return zeroes ? edge_pwrite(edge, offset, zeroes, bytes, flags & REQ_FUA) : -ENOSPC;
}

int edge_discard(Edge *edge, uint64_t offset, uint64_t bytes)
{
    return edge_write_zeroes(edge, offset, bytes, 0);
}

int edge_flush(Edge *edge)
{
    MemFile *file = edge->mem;
    AUTO_FREE uint64_t *numbers = NULL;
    size_t count = 0;

    if (fails())
        return -EIO;
    if (!file->durable) {
        test_pause();
        return 0;
    }
    numbers = mem_zalloc((file->write_count + 1) * sizeof(*numbers));
    for (size_t i = 0; i < file->write_count; i++)
        if (file->writes[i].completed)
            numbers[count++] = file->writes[i].number;
    test_pause();
    for (size_t k = 0; k < count; k++) {
        for (size_t i = 0; i < file->write_count; i++) {
            if (file->writes[i].number == numbers[k]) {
                replay(file->durable, &file->writes[i], false);
                forget_write(file, i);
                break;
            }
        }
    }
    return 0;
}

int edge_status_above(Edge *edge, uint64_t offset, uint64_t bytes, BlockStatus *ret_status)
{
    *ret_status = (BlockStatus){.bytes = bytes, .flags = BLOCK_STATUS_DATA};
    return 0;
}

int edge_resize(Edge *edge, uint64_t size, bool exact, Preallocation prealloc, unsigned flags, Error *err)
{
    if (size > mem_limit)
        return err_set(err, -ENOSPC, "too large");
    mem_file_reserve(edge->mem, size);
    if (size < edge->mem->size)
        memset(edge->mem->data + size, 0, edge->mem->size - size);
    edge->mem->size = edge->node->size = size;
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

Node *test_open(bool read_only, Error *err)
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
    node->discard_unmap = true;
    if (driver_qcow2.open(node, &options, err) < 0) {
        test_close(node);
        return NULL;
    }
    return node;
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
    free(node->private);
    free(node->backing_filename);
    free(node->backing_format);
    free(node->state);
    free(node);
}
