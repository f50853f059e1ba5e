/* SPDX-License-Identifier: Apache-2.0 */
/* Dirty bitmaps of a node for tests of the engine: stands in for block/bitmap.c, with a byte for each
 * granule. */
#pragma once

#include "block/bitmap.h"
#include "drivers/qcow2/test-graph.h"

/* Frees all bitmaps of a node. */
void test_bitmaps_free(Node *node);
/* The request path around a change of [offset, offset + bytes): what the graph does before and after it. */
int test_change_begin(Node *node, uint64_t offset, uint64_t bytes);
void test_change_end(Node *node, uint64_t offset, uint64_t bytes);
/* The graph's part of a resize. */
void test_bitmaps_resize(Node *node, uint64_t size);
