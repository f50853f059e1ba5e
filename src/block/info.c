/* SPDX-License-Identifier: Apache-2.0 */
/* What nodes are and have done, as query results: query-named-block-nodes, query-blockstats, the graph. */
#include "block/block-priv.h"

#include "base/mem.h"
#include "block/bitmap.h"
#include "block/snapshot.h"
#include "generated/commands.h"

#include <errno.h>
#include <string.h>

typedef struct InfoCall {
    Node *node;
    ImageInfo *info;
    Error *err;
} InfoCall;

/* ---- Images ---- */

/* Of the node itself, or of the nearest one below that knows. */
static int64_t allocated_on_home(Node *node)
{
    int64_t allocated = node->driver->allocated_size ? node->driver->allocated_size(node) : -ENOTSUP;

    for (Node *below = node; allocated == -ENOTSUP && below->file; below = below->file->node) {
        Node *child = below->file->node;

        allocated = child->driver->allocated_size ? child->driver->allocated_size(child) : -ENOTSUP;
    }
    return allocated;
}

typedef struct AllocatedCall {
    Node *node;
    int64_t allocated;
} AllocatedCall;

static int find_allocated(void *arg)
{
    AllocatedCall *call = arg;

    call->allocated = allocated_on_home(call->node);
    return 0;
}

int64_t edge_allocated_size(Edge *edge)
{
    AllocatedCall call = {.node = edge->node};

    loop_call(call.node->home, find_allocated, &call);
    return call.allocated;
}

static int info_on_home(void *arg)
{
    InfoCall *call = arg;
    Node *node = call->node;
    int64_t allocated = allocated_on_home(node);

    if (allocated >= 0) {
        call->info->has_actual_size = true;
        call->info->actual_size = allocated;
    }
    return node->driver->info ? node->driver->info(node, call->info, call->err) : 0;
}

static void add_cluster_size(Node *node, ImageInfo *info)
{
    uint64_t below = info->has_cluster_size || !node->file ? 0 : node_cluster_size(node->file->node);

    if (!below)
        return;
    info->has_cluster_size = true;
    info->cluster_size = (int64_t)below;
}

uint64_t node_cluster_size(Node *node)
{
    CLEANUP(image_info_free_ptr) ImageInfo *info = mem_new(ImageInfo);
    AUTO_ERROR Error err = ERROR_INIT;
    InfoCall call = {.node = node, .info = info, .err = &err};

    (void)loop_call(node->home, info_on_home, &call);
    add_cluster_size(node, info);
    return (uint64_t)info->cluster_size;
}

static const char *backing_path(const Node *node)
{
    return node->backing_filename && node->backing_filename[0] ? node->backing_filename : NULL;
}

static void add_backing(Node *node, ImageInfo *info)
{
    AUTO_ERROR Error err = ERROR_INIT;
    const char *path = backing_path(node);

    if (!path)
        return;
    info->backing_filename = str_dup(path);
    info->full_backing_filename = node_resolve_path(node, path, &err);
    if (!info->full_backing_filename) /* is not followed, but shown */
        info->full_backing_filename = str_dup(path);
    info->backing_filename_format = str_dup(node->backing_format);
}

/* The next layer: what a backing file is to an image, a filter's child is to the filter. */
static Node *next_layer(const Node *node)
{
    if (node->backing)
        return node->backing->node;
    return (node->driver->flags & DRIVER_FILTER) && node->file ? node->file->node : NULL;
}

static int image_info(Node *node, bool with_backing, ImageInfo **ret_info, Error *err)
{
    CLEANUP(image_info_free_ptr) ImageInfo *info = mem_new(ImageInfo);
    InfoCall call = {.node = node, .info = info, .err = err};
    int r;

    info->filename = node_filename(node);
    info->format = str_dup(node->driver->name);
    info->virtual_size = (int64_t)node->size;
    add_backing(node, info);
    r = loop_call(node->home, info_on_home, &call);
    add_cluster_size(node, info);
    if (r == 0)
        r = node_snapshot_list(node, &info->snapshots, err);
    info->has_snapshots = info->snapshots.count != 0;
    if (r == 0 && with_backing && next_layer(node))
        r = image_info(next_layer(node), true, &info->backing_image, err);
    if (r == 0)
        *ret_info = TAKE(info);
    return r;
}

static int chain_depth(const Node *node)
{
    int depth = 0;

    while ((node = next_layer(node)))
        depth++;
    return depth;
}

static BlockDirtyInfo *bitmap_info(const DirtyBitmap *bitmap)
{
    BlockDirtyInfo *info = mem_new(BlockDirtyInfo);

    info->name = str_dup(dirty_bitmap_name(bitmap));
    info->count = (int64_t)dirty_bitmap_count(bitmap);
    info->granularity = dirty_bitmap_granularity(bitmap);
    info->recording = dirty_bitmap_is_enabled(bitmap);
    info->busy = dirty_bitmap_is_busy(bitmap);
    info->persistent = dirty_bitmap_is_persistent(bitmap);
    info->has_inconsistent = info->inconsistent = dirty_bitmap_is_inconsistent(bitmap);
    return info;
}

static void add_bitmaps(const Node *node, BlockDeviceInfo *info)
{
    BlockDirtyInfoList *list = &info->dirty_bitmaps;
    size_t capacity = 0;

    for (const DirtyBitmap *bitmap = NULL; (bitmap = dirty_bitmap_next(node, bitmap));) {
        VEC_GROW(list->items, list->count, capacity);
        list->items[list->count++] = bitmap_info(bitmap);
    }
    info->has_dirty_bitmaps = list->count;
}

static int device_info(Node *node, bool flat, BlockDeviceInfo **ret_info, Error *err)
{
    CLEANUP(block_device_info_free_ptr) BlockDeviceInfo *info = mem_new(BlockDeviceInfo);
    int r;

    info->file = node_filename(node);
    info->node_name = str_dup(node->name);
    info->ro = node->read_only;
    info->drv = str_dup(node->driver->name);
    if (node->backing)
        info->backing_file = node_filename(node->backing->node);
    info->backing_file_depth = flat ? 0 : chain_depth(node);
    info->active = node->active;
    info->detect_zeroes = (BlockdevDetectZeroesOptions)node->detect_zeroes;
    info->cache = mem_new(BlockdevCacheInfo);
    info->cache->writeback = true;
    info->cache->direct = node->direct;
    info->cache->no_flush = node->no_flush;
    add_bitmaps(node, info);
    r = image_info(node, !flat, &info->image, err);
    if (r < 0)
        return r;
    info->encrypted = info->image->has_encrypted && info->image->encrypted;
    *ret_info = TAKE(info);
    return 0;
}

typedef struct Collect {
    Node **nodes;
    size_t count, capacity;
} Collect;

static void collect(Node *node, void *arg)
{
    Collect *c = arg;

    if (!node->private->in_graph)
        return;
    VEC_GROW(c->nodes, c->count, c->capacity);
    c->nodes[c->count++] = node;
}

int qmp_query_named_block_nodes(
    const QueryNamedBlockNodesArg *arg, BlockDeviceInfoList *ret_result, Error *err)
{
    Collect c = {0};
    int r = 0;

    node_foreach(collect, &c);
    ret_result->items = mem_zalloc(MAX(c.count, (size_t)1) * sizeof(*ret_result->items));
    for (size_t i = 0; r == 0 && i < c.count; i++) {
        r = device_info(c.nodes[i], arg->has_flat && arg->flat, &ret_result->items[i], err);
        ret_result->count += r == 0;
    }
    free(c.nodes);
    return r;
}

int qmp_query_block(BlockInfoList *ret_result, Error *err)
{
    *ret_result = (BlockInfoList){0}; /* devices of a virtual machine: there are none */
    return 0;
}

/* ---- Statistics ---- */

typedef struct LaneCall {
    EdgeStats *sum;
    const EdgeStats *lane;
} LaneCall;

static int add_lane(void *arg)
{
    const LaneCall *call = arg;
    EdgeStats *sum = call->sum;
    const EdgeStats *s = call->lane;

    sum->read_bytes += s->read_bytes;
    sum->write_bytes += s->write_bytes;
    sum->zeroes_bytes += s->zeroes_bytes;
    sum->discard_bytes += s->discard_bytes;
    sum->read_ops += s->read_ops;
    sum->write_ops += s->write_ops;
    sum->zeroes_ops += s->zeroes_ops;
    sum->flush_ops += s->flush_ops;
    sum->discard_ops += s->discard_ops;
    sum->read_ns += s->read_ns;
    sum->write_ns += s->write_ns;
    sum->flush_ns += s->flush_ns;
    sum->discard_ns += s->discard_ns;
    sum->failed_reads += s->failed_reads;
    sum->failed_writes += s->failed_writes;
    sum->failed_flushes += s->failed_flushes;
    sum->failed_discards += s->failed_discards;
    return 0;
}

void edge_stats_add(EdgeStats *sum, const Edge *edge)
{
    for (unsigned i = 0; i < LIMIT_LOOPS; i++) {
        const Lane *lane = atomic_load(&edge->lanes[i]);
        LaneCall call = {.sum = sum, .lane = lane ? &lane->stats : NULL};

        if (lane && loop_at(i))
            loop_call(loop_at(i), add_lane, &call);
        else if (lane) /* its loop is gone */
            add_lane(&call);
    }
}

typedef struct StatsCall {
    Node *node;
    EdgeStats sum;
    uint64_t write_highest;
    BlockStatsSpecific *specific;
} StatsCall;

static int stats_on_home(void *arg)
{
    StatsCall *call = arg;
    const NodePrivate *p = call->node->private;

    call->write_highest = p->write_highest;
    call->specific = call->node->driver->stats ? call->node->driver->stats(call->node) : NULL;
    return 0;
}

static BlockDeviceStats *device_stats(const StatsCall *call)
{
    BlockDeviceStats *s = mem_new(BlockDeviceStats);

    s->rd_bytes = (int64_t)call->sum.read_bytes;
    s->wr_bytes = (int64_t)(call->sum.write_bytes + call->sum.zeroes_bytes);
    s->unmap_bytes = (int64_t)call->sum.discard_bytes;
    s->rd_operations = (int64_t)call->sum.read_ops;
    s->wr_operations = (int64_t)(call->sum.write_ops + call->sum.zeroes_ops);
    s->flush_operations = (int64_t)call->sum.flush_ops;
    s->unmap_operations = (int64_t)call->sum.discard_ops;
    s->rd_total_time_ns = (int64_t)call->sum.read_ns;
    s->wr_total_time_ns = (int64_t)call->sum.write_ns;
    s->flush_total_time_ns = (int64_t)call->sum.flush_ns;
    s->unmap_total_time_ns = (int64_t)call->sum.discard_ns;
    s->failed_rd_operations = (int64_t)call->sum.failed_reads;
    s->failed_wr_operations = (int64_t)call->sum.failed_writes;
    s->failed_flush_operations = (int64_t)call->sum.failed_flushes;
    s->failed_unmap_operations = (int64_t)call->sum.failed_discards;
    s->wr_highest_offset = (int64_t)call->write_highest;
    return s;
}

/* What all users of the node, exports and parents alike, have sent to it. */
static BlockStats *node_stats(Node *node)
{
    StatsCall call = {.node = node, .sum = node->private->closed_stats};
    BlockStats *stats = mem_new(BlockStats);

    graph_change_begin();
    LIST_FOREACH (link, &node->private->parents)
        edge_stats_add(&call.sum, LIST_ENTRY(link, Edge, node_link));
    loop_call(node->home, stats_on_home, &call);
    graph_change_end();
    stats->node_name = str_dup(node->name);
    stats->stats = device_stats(&call);
    stats->driver_specific = call.specific;
    if (node->file)
        stats->parent = node_stats(node->file->node);
    if (node->backing)
        stats->backing = node_stats(node->backing->node);
    return stats;
}

int qmp_query_blockstats(const QueryBlockstatsArg *arg, BlockStatsList *ret_result, Error *err)
{
    Collect c = {0};

    if (!arg->has_query_nodes || !arg->query_nodes)
        return 0;
    node_foreach(collect, &c);
    ret_result->items = mem_zalloc(MAX(c.count, (size_t)1) * sizeof(*ret_result->items));
    ret_result->count = c.count;
    for (size_t i = 0; i < c.count; i++)
        ret_result->items[i] = node_stats(c.nodes[c.count - 1 - i]); /* oldest first */
    free(c.nodes);
    return 0;
}

/* ---- Graph ---- */

typedef struct GraphIds {
    const void **things; /* the id of things[i] is i + 1 */
    size_t count, capacity;
} GraphIds;

static uint64_t graph_id(GraphIds *ids, const void *thing)
{
    for (size_t i = 0; i < ids->count; i++)
        if (ids->things[i] == thing)
            return i + 1;
    VEC_GROW(ids->things, ids->count, ids->capacity);
    ids->things[ids->count++] = thing;
    return ids->count;
}

static BlockPermissionList permission_list(unsigned perm)
{
    static const struct {
        unsigned bit;
        BlockPermission name;
    } order[] = {{PERM_RESIZE, BLOCK_PERMISSION_RESIZE},
        {PERM_WRITE_UNCHANGED, BLOCK_PERMISSION_WRITE_UNCHANGED}, {PERM_WRITE, BLOCK_PERMISSION_WRITE},
        {PERM_CONSISTENT_READ, BLOCK_PERMISSION_CONSISTENT_READ}};
    BlockPermissionList list = {.items = mem_zalloc(ARRAY_SIZE(order) * sizeof(BlockPermission))};

    for (size_t i = 0; i < ARRAY_SIZE(order); i++)
        if (perm & order[i].bit)
            list.items[list.count++] = order[i].name;
    return list;
}

static void add_graph_node(
    XDbgBlockGraph *graph, GraphIds *ids, const void *thing, XDbgBlockGraphNodeType type, const char *name)
{
    XDbgBlockGraphNode *item = mem_new(XDbgBlockGraphNode);

    item->id = graph_id(ids, thing);
    item->type = type;
    item->name = str_dup(name);
    graph->nodes.items =
        mem_realloc(graph->nodes.items, (graph->nodes.count + 1) * sizeof(*graph->nodes.items));
    graph->nodes.items[graph->nodes.count++] = item;
}

static void add_graph_edge(XDbgBlockGraph *graph, GraphIds *ids, const Edge *edge)
{
    XDbgBlockGraphEdge *item = mem_new(XDbgBlockGraphEdge);

    item->parent = graph_id(ids, edge->parent ? (const void *)edge->parent : edge);
    item->child = graph_id(ids, edge->node);
    item->name = str_dup(edge->name);
    item->perm = permission_list(edge->perm);
    item->shared_perm = permission_list(edge->shared);
    graph->edges.items =
        mem_realloc(graph->edges.items, (graph->edges.count + 1) * sizeof(*graph->edges.items));
    graph->edges.items[graph->edges.count++] = item;
}

static void add_roots(XDbgBlockGraph *graph, GraphIds *ids, const Node *node)
{
    LIST_FOREACH (link, &node->private->parents) {
        const Edge *edge = LIST_ENTRY(link, Edge, node_link);

        if (edge->parent)
            continue;
        add_graph_node(graph, ids, edge, XDBG_BLOCK_GRAPH_NODE_TYPE_BLOCK_BACKEND, "");
        add_graph_edge(graph, ids, edge);
    }
}

int qmp_x_debug_query_block_graph(XDbgBlockGraph **ret_result, Error *err)
{
    XDbgBlockGraph *graph = mem_new(XDbgBlockGraph);
    GraphIds ids = {0};
    Collect c = {0};

    node_foreach(collect, &c);
    for (size_t i = 0; i < c.count; i++) {
        add_graph_node(graph, &ids, c.nodes[i], XDBG_BLOCK_GRAPH_NODE_TYPE_BLOCK_DRIVER, c.nodes[i]->name);
        LIST_FOREACH (link, &c.nodes[i]->private->children)
            add_graph_edge(graph, &ids, LIST_ENTRY(link, Edge, parent_link));
    }
    for (size_t i = 0; i < c.count; i++)
        add_roots(graph, &ids, c.nodes[i]);
    free(c.nodes);
    free(ids.things);
    *ret_result = graph;
    return 0;
}
