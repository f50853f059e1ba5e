/* SPDX-License-Identifier: Apache-2.0 */
/* The FUSE protocol: our definitions against the system's, decoding at its limits, negotiation. */
#include "proto/fuse.h"

#include <errno.h>
#include <linux/fuse.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define SAME_SIZE(ours, theirs) assert_int_equal(sizeof(ours), sizeof(struct theirs))
#define SAME_PLACE(ours, member, theirs, other) \
    assert_int_equal(offsetof(ours, member), offsetof(struct theirs, other))

static void test_layouts(void **state)
{
    SAME_SIZE(FuseHeader, fuse_in_header);
    SAME_PLACE(FuseHeader, node, fuse_in_header, nodeid);
    SAME_SIZE(FuseOutHeader, fuse_out_header);
    SAME_PLACE(FuseOutHeader, unique, fuse_out_header, unique);
    SAME_SIZE(FuseInitOut, fuse_init_out);
    SAME_PLACE(FuseInitOut, max_write, fuse_init_out, max_write);
    SAME_PLACE(FuseInitOut, max_pages, fuse_init_out, max_pages);
    SAME_SIZE(FuseAttrOut, fuse_attr_out);
    SAME_PLACE(FuseAttrOut, attr, fuse_attr_out, attr);
    SAME_PLACE(FuseAttr, mode, fuse_attr, mode);
    SAME_PLACE(FuseAttr, block_bytes, fuse_attr, blksize);
    SAME_SIZE(FuseSetattrIn, fuse_setattr_in);
    SAME_PLACE(FuseSetattrIn, size, fuse_setattr_in, size);
    SAME_PLACE(FuseSetattrIn, mode, fuse_setattr_in, mode);
    SAME_PLACE(FuseSetattrIn, gid, fuse_setattr_in, gid);
    SAME_SIZE(FuseOpenOut, fuse_open_out);
    SAME_SIZE(FuseIoIn, fuse_read_in);
    SAME_SIZE(FuseIoIn, fuse_write_in);
    SAME_PLACE(FuseIoIn, bytes, fuse_write_in, size);
    SAME_SIZE(FuseWriteOut, fuse_write_out);
    SAME_SIZE(FuseStatfsOut, fuse_statfs_out);
    SAME_PLACE(FuseStatfsOut, name_bytes, fuse_kstatfs, namelen);
    SAME_SIZE(FuseFallocateIn, fuse_fallocate_in);
    SAME_PLACE(FuseFallocateIn, mode, fuse_fallocate_in, mode);
    SAME_SIZE(FuseLseekIn, fuse_lseek_in);
    SAME_SIZE(FuseCopyIn, fuse_copy_file_range_in);
    SAME_PLACE(FuseCopyIn, offset_out, fuse_copy_file_range_in, off_out);
    assert_int_equal(sizeof(FuseUringHeaders), 288); /* newer than most systems' headers */
    assert_int_equal(sizeof(FuseUringCommand), 24);
}

static void test_values(void **state)
{
    assert_int_equal(FUSE_OP_SETATTR, FUSE_SETATTR);
    assert_int_equal(FUSE_OP_RELEASE, FUSE_RELEASE);
    assert_int_equal(FUSE_OP_FSYNC, FUSE_FSYNC);
    assert_int_equal(FUSE_OP_FLUSH, FUSE_FLUSH);
    assert_int_equal(FUSE_OP_DESTROY, FUSE_DESTROY);
    assert_int_equal(FUSE_OP_COPY_FILE_RANGE, FUSE_COPY_FILE_RANGE);
    assert_int_equal(FUSE_CAP_ATOMIC_TRUNCATE, FUSE_ATOMIC_O_TRUNC);
    assert_int_equal(FUSE_CAP_AUTO_INVALIDATE, FUSE_AUTO_INVAL_DATA);
    assert_int_equal(FUSE_CAP_ASYNC_DIRECT, FUSE_ASYNC_DIO);
    assert_int_equal(FUSE_CAP_MAX_PAGES, FUSE_MAX_PAGES);
    assert_int_equal(FUSE_SET_SIZE, FATTR_SIZE);
    assert_int_equal(FUSE_SET_CTIME, FATTR_CTIME);
    assert_int_equal(FUSE_OPEN_DIRECT, FOPEN_DIRECT_IO);
    assert_int_equal(fuse_invalidate_attributes().header.error, FUSE_NOTIFY_INVAL_INODE);
    assert_int_equal(fuse_invalidate_attributes().header.bytes,
        sizeof(struct fuse_out_header) + sizeof(struct fuse_notify_inval_inode_out));
}

/* ---- Headers ---- */

static FuseHeader header_of(uint32_t opcode, size_t bytes)
{
    return (FuseHeader){.bytes = (uint32_t)bytes, .opcode = opcode, .unique = 7, .node = FUSE_ROOT};
}

static void test_header(void **state)
{
    FuseHeader in = header_of(FUSE_OP_READ, 80), out = {.unique = 99};
    uint8_t data[80] = {0};

    memcpy(data, &in, sizeof(in));
    assert_int_equal(fuse_header_decode(data, 39, &out), -EPROTO);
    assert_int_equal(fuse_header_decode(data, 79, &out), -EPROTO);
    assert_int_equal(out.unique, 99);
    assert_int_equal(fuse_header_decode(data, 80, &out), 0);
    assert_memory_equal(&in, &out, sizeof(in));
}

static void test_uring_header(void **state)
{
    FuseHeader in = header_of(FUSE_OP_WRITE, 40 + 40 + 512), out;
    FuseUringHeaders headers = {.payload_bytes = 512};
    size_t body;

    memcpy(headers.header, &in, sizeof(in));
    assert_int_equal(fuse_uring_decode(&headers, &out, &body), 0);
    assert_int_equal(body, 40);
    headers.payload_bytes = 553; /* more than the request is long */
    assert_int_equal(fuse_uring_decode(&headers, &out, &body), -EPROTO);
    headers.payload_bytes = 0; /* more than a body has room for */
    assert_int_equal(fuse_uring_decode(&headers, &out, &body), 0);
    assert_int_equal(body, 128);
    in.bytes = 39;
    memcpy(headers.header, &in, sizeof(in));
    assert_int_equal(fuse_uring_decode(&headers, &out, &body), -EPROTO);
}

/* ---- Bodies ---- */

/* Decodes a copy that ends where the body ends, so that a read behind it shows. */
static int decode(uint32_t opcode, const void *body, size_t bytes, size_t payload, FuseRequest *ret_request)
{
    FuseHeader header = header_of(opcode, 0);
    uint8_t *copy = test_malloc(bytes + 1);
    int r;

    memcpy(copy + 1, body, bytes);
    r = fuse_request_decode(&header, copy + 1, bytes, payload, ret_request);
    test_free(copy);
    return r;
}

#define EXPECT(result, opcode, payload, ...)                                                      \
    do {                                                                                          \
        FuseRequest request_ = {.header.unique = 99};                                             \
        typeof(__VA_ARGS__) body_ = __VA_ARGS__;                                                  \
                                                                                                  \
        assert_int_equal(decode(opcode, &body_, sizeof(body_), payload, &request_), result);      \
        assert_int_equal(request_.header.unique, (result) < 0 ? 99 : 7);                          \
        assert_int_equal(decode(opcode, &body_, sizeof(body_) - 1, payload, &request_), -EINVAL); \
    } while (0)

static void test_data(void **state)
{
    EXPECT(0, FUSE_OP_READ, 0, (FuseIoIn){.offset = 5, .bytes = FUSE_PAYLOAD_BYTES});
    EXPECT(-EINVAL, FUSE_OP_READ, 0, (FuseIoIn){.bytes = FUSE_PAYLOAD_BYTES + 1});
    EXPECT(-EFBIG, FUSE_OP_READ, 0, (FuseIoIn){.offset = INT64_MAX, .bytes = 1});
    EXPECT(-EFBIG, FUSE_OP_READ, 0, (FuseIoIn){.offset = UINT64_MAX, .bytes = 1});
    EXPECT(-EINVAL, FUSE_OP_READ, 1, (FuseIoIn){.bytes = 1});
    EXPECT(0, FUSE_OP_WRITE, 512, (FuseIoIn){.offset = INT64_MAX - 512, .bytes = 512});
    EXPECT(-EFBIG, FUSE_OP_WRITE, 512, (FuseIoIn){.offset = INT64_MAX - 511, .bytes = 512});
    EXPECT(-EINVAL, FUSE_OP_WRITE, 511, (FuseIoIn){.bytes = 512});
    EXPECT(-EINVAL, FUSE_OP_WRITE, FUSE_PAYLOAD_BYTES + 1, (FuseIoIn){.bytes = FUSE_PAYLOAD_BYTES + 1});
}

static void test_ranges(void **state)
{
    EXPECT(0, FUSE_OP_FALLOCATE, 0, (FuseFallocateIn){.offset = 1, .bytes = INT64_MAX - 1, .mode = 77});
    EXPECT(-EFBIG, FUSE_OP_FALLOCATE, 0, (FuseFallocateIn){.offset = 2, .bytes = INT64_MAX - 1});
    EXPECT(-EFBIG, FUSE_OP_FALLOCATE, 0, (FuseFallocateIn){.offset = 2, .bytes = UINT64_MAX});
    EXPECT(-EINVAL, FUSE_OP_FALLOCATE, 0, (FuseFallocateIn){.offset = 2});
    EXPECT(0, FUSE_OP_LSEEK, 0, (FuseLseekIn){.offset = INT64_MAX, .whence = SEEK_HOLE});
    EXPECT(-ENXIO, FUSE_OP_LSEEK, 0, (FuseLseekIn){.offset = UINT64_MAX, .whence = SEEK_DATA});
    EXPECT(-EINVAL, FUSE_OP_LSEEK, 0, (FuseLseekIn){.whence = SEEK_SET});
    EXPECT(0, FUSE_OP_SETATTR, 0, (FuseSetattrIn){.valid = FUSE_SET_MODE, .size = UINT64_MAX});
    EXPECT(-EFBIG, FUSE_OP_SETATTR, 0, (FuseSetattrIn){.valid = FUSE_SET_SIZE, .size = UINT64_MAX});
}

static void test_copies(void **state)
{
    EXPECT(0, FUSE_OP_COPY_FILE_RANGE, 0, (FuseCopyIn){.node_out = 1, .offset_out = 10, .bytes = 10});
    EXPECT(0, FUSE_OP_COPY_FILE_RANGE, 0, (FuseCopyIn){.node_out = 1, .offset_in = 10, .bytes = 10});
    EXPECT(-EINVAL, FUSE_OP_COPY_FILE_RANGE, 0, (FuseCopyIn){.node_out = 1, .offset_out = 9, .bytes = 10});
    EXPECT(-EINVAL, FUSE_OP_COPY_FILE_RANGE, 0, (FuseCopyIn){.node_out = 1, .offset_in = 9, .bytes = 10});
    EXPECT(-EINVAL, FUSE_OP_COPY_FILE_RANGE, 0, (FuseCopyIn){.node_out = 2, .offset_in = 99, .bytes = 1});
    EXPECT(-EINVAL, FUSE_OP_COPY_FILE_RANGE, 0, (FuseCopyIn){.node_out = 1, .offset_in = 99, .flags = 1});
    EXPECT(-EFBIG, FUSE_OP_COPY_FILE_RANGE, 0,
        (FuseCopyIn){.node_out = 1, .offset_in = 1, .offset_out = UINT64_MAX - 1, .bytes = 10});
}

static void test_others(void **state)
{
    FuseRequest request;

    assert_int_equal(decode(FUSE_OP_STATFS, "", 0, 0, &request), 0);
    assert_int_equal(decode(FUSE_OP_LOOKUP, "name", 5, 0, &request), 0);
    assert_int_equal(decode(FUSE_GETXATTR, "", 0, 0, &request), -ENOSYS);
    assert_int_equal(decode(0, "", 0, 0, &request), -ENOSYS);
    assert_int_equal(decode(UINT32_MAX, "", 0, 0, &request), -ENOSYS);
    assert_true(fuse_wants_reply(FUSE_OP_READ));
    assert_true(fuse_wants_reply(12345));
    assert_false(fuse_wants_reply(FUSE_OP_FORGET));
    assert_false(fuse_wants_reply(FUSE_OP_BATCH_FORGET));
    assert_false(fuse_wants_reply(FUSE_OP_INTERRUPT));
}

/* ---- Negotiation ---- */

static void test_negotiation(void **state)
{
    uint64_t wanted = FUSE_CAP_ASYNC_READ | FUSE_CAP_MAX_PAGES | FUSE_CAP_DIRECT_ALLOWS_MMAP;
    FuseInitIn in = {
        .major = 7, .minor = 34, .max_readahead = 4096, .flags = UINT32_MAX, .flags2 = UINT32_MAX};
    FuseInitOut out = {.major = 99};

    assert_int_equal(fuse_negotiate(&in, wanted, &out), 0);
    assert_int_equal(out.minor, 34);
    assert_int_equal(out.max_write, FUSE_PAYLOAD_BYTES);
    assert_true(fuse_agreed(&out) == (wanted | FUSE_CAP_INIT_EXTENDED));
    in.flags &=
        ~(uint32_t)FUSE_CAP_INIT_EXTENDED; /* then there is no second word, whatever is in its place */
    assert_int_equal(fuse_negotiate(&in, wanted, &out), 0);
    assert_true(fuse_agreed(&out) == (FUSE_CAP_ASYNC_READ | FUSE_CAP_MAX_PAGES));
    in.minor = 1000;
    assert_int_equal(fuse_negotiate(&in, wanted, &out), 0);
    assert_int_equal(out.minor, FUSE_MINOR);
    in.minor = FUSE_MINOR_OLDEST - 1;
    out.major = 99;
    assert_int_equal(fuse_negotiate(&in, wanted, &out), -EPROTO);
    in.major = 6;
    assert_int_equal(fuse_negotiate(&in, wanted, &out), -EPROTO);
    assert_int_equal(out.major, 99);
    in.major = 8;
    assert_int_equal(fuse_negotiate(&in, wanted, &out), 1);
    assert_int_equal(out.major, 7);
}

/* Older kernels send less. */
static void test_short_init(void **state)
{
    FuseInitIn in = {.major = 7, .minor = 34, .flags = UINT32_MAX, .flags2 = 5};
    FuseRequest request;

    assert_int_equal(decode(FUSE_OP_INIT, &in, 15, 0, &request), -EINVAL);
    assert_int_equal(decode(FUSE_OP_INIT, &in, 16, 0, &request), 0);
    assert_int_equal(request.init.flags, UINT32_MAX);
    assert_int_equal(request.init.flags2, 0);
    assert_int_equal(decode(FUSE_OP_INIT, &in, sizeof(in), 0, &request), 0);
    assert_int_equal(request.init.flags2, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_header),
        cmocka_unit_test(test_uring_header),
        cmocka_unit_test(test_data),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_others),
        cmocka_unit_test(test_negotiation),
        cmocka_unit_test(test_short_init),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
