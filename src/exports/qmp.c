/* SPDX-License-Identifier: Apache-2.0 */
/* Commands about exports of every kind. */
#include "exports/export.h"

#include "base/mem.h"
#include "generated/commands.h"
#include "generated/types.h"

int qmp_block_export_add(const BlockExportOptions *arg, Error *err)
{
    return export_add(arg, err);
}

int qmp_block_export_del(const BlockExportDelArg *arg, Error *err)
{
    Export *export = export_find(arg->id);

    if (!export)
        return err_set(err, -ENOENT, "Export '%s' is not found", arg->id);
    return export_remove(export, arg->has_mode && arg->mode == BLOCK_EXPORT_REMOVE_MODE_HARD, err);
}

static BlockExportInfo *export_info(const Export *export)
{
    BlockExportInfo *info = mem_new(BlockExportInfo);

    info->id = str_dup(export->id);
    info->type = export->type;
    info->node_name = str_dup(node_name(edge_node(export->edge)));
    info->shutting_down = export->shutting_down;
    return info;
}

int qmp_query_block_exports(BlockExportInfoList *ret_result, Error *err)
{
    BlockExportInfoList list = {0};
    size_t capacity = 0;

    for (Export *export = export_next(NULL); export; export = export_next(export)) {
        if (!export->edge)
            continue;
        VEC_GROW(list.items, list.count, capacity);
        list.items[list.count++] = export_info(export);
    }
    *ret_result = list;
    return 0;
}
