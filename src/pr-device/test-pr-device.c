/* SPDX-License-Identifier: Apache-2.0 */
/* Carrying commands out, as far as it goes without a disk: what results become, what is refused before a
 * device sees it, data that is made here, and the conversation with multipathd. */
#include "pr-device/pr-device-priv.h"

#include "base/endian.h"
#include "base/mem.h"

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

static PrReply reply;

/* Every function must set everything but the data. */
static void soil(void)
{
    memset(&reply, 0xa5, sizeof(reply));
}

static void expect_status(unsigned status)
{
    static const uint8_t none[SCSI_SENSE_BYTES];

    assert_int_equal(reply.status, status);
    assert_memory_equal(reply.sense, none, sizeof(none));
}

static void expect_sense(unsigned key, unsigned asc, unsigned ascq)
{
    ScsiSense sense;

    assert_int_equal(reply.status, SCSI_CHECK_CONDITION);
    assert_true(pr_reply_sense(&reply, &sense));
    assert_int_equal(sense.key << 16 | sense.asc << 8 | sense.ascq, key << 16 | asc << 8 | ascq);
}

/* ---- Results ---- */

static void test_errno(void **state)
{
    static const struct {
        int error;
        uint8_t key, asc, ascq;
    } table[] = {
        {EINVAL, 5, 0x24, 0},
        {ENOMEDIUM, 2, 0x3a, 0},
        {ENODATA, 3, 0x11, 0},
        {ENOMEM, 4, 0x44, 0},
        {EREMOTEIO, 4, 0x44, 0},
        {ENOSPC, 7, 0x27, 7},
        {ENOTTY, 0xb, 0, 6},
        {ENXIO, 0xb, 0, 6},
        {EBADF, 0xb, 0, 6},
        {EAGAIN, 0xb, 0, 6},
        {EPERM, 0xb, 0, 6},
        {ETIMEDOUT, 0xb, 0, 6},
        {EIO, 0xb, 0, 6},
        {12345, 0xb, 0, 6},
    };
    const sg_io_hdr_t hdr = {.status = SCSI_GOOD};

    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        soil();
        pr_status_sg(table[i].error, &hdr, &reply);
        expect_sense(table[i].key, table[i].asc, table[i].ascq);
    }
    soil();
    pr_status_sg(EDOM, &hdr, &reply);
    expect_status(SCSI_TASK_SET_FULL);
    soil();
    pr_status_sg(EBADE, &hdr, &reply);
    expect_status(SCSI_RESERVATION_CONFLICT);
}

static void sg(
    unsigned status, unsigned host_status, unsigned driver_status, const uint8_t *sense, unsigned bytes)
{
    sg_io_hdr_t hdr = {.status = (uint8_t)status,
        .host_status = (uint16_t)host_status,
        .driver_status = (uint16_t)driver_status,
        .sbp = (uint8_t *)sense,
        .sb_len_wr = (uint8_t)bytes};

    soil();
    pr_status_sg(0, &hdr, &reply);
}

static void test_host_status(void **state)
{
    static const struct {
        uint8_t host_status, key, asc, ascq;
    } table[] = {
        {0x01, 0xb, 0x05, 0},
        {0x03, 0xb, 0x2e, 2},
        {0x04, 0xb, 0x08, 0},
        {0x05, 0xb, 0x2f, 2},
        {0x08, 6, 0x29, 0},
        {0x0e, 0xb, 0x29, 7},
        {0x10, 4, 0x44, 0},
        {0x12, 7, 0x27, 7},
        {0x13, 3, 0x11, 0},
        /* Not in the table: still no success. */
        {0x07, 0xb, 0x08, 0},
        {0x0f, 0xb, 0x08, 0},
        {0xff, 0xb, 0x08, 0},
    };

    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        sg(0, table[i].host_status, 0, NULL, 0);
        expect_sense(table[i].key, table[i].asc, table[i].ascq);
        /* CHECK CONDITION without sense data says less. */
        sg(SCSI_CHECK_CONDITION, table[i].host_status, 0x08, NULL, 0);
        expect_sense(table[i].key, table[i].asc, table[i].ascq);
    }
    sg(0, 0x02, 0, NULL, 0);
    expect_status(SCSI_BUSY);
    sg(0, 0x11, 0, NULL, 0);
    expect_status(SCSI_RESERVATION_CONFLICT);
}

static void test_scsi_status(void **state)
{
    static const unsigned statuses[] = {0x04, 0x08, 0x18, 0x28, 0x30, 0x40};
    static const uint8_t attention[] = {0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x2a, 0x04, 0, 0, 0, 0};
    static uint8_t longest[255];

    for (size_t i = 0; i < ARRAY_SIZE(statuses); i++) {
        sg(statuses[i], 0, 0, NULL, 0);
        expect_status(statuses[i]);
        sg(statuses[i] | 0x81, 0, 0, NULL, 0);
        expect_status(statuses[i]);
    }
    sg(0, 0, 0, NULL, 0);
    expect_status(SCSI_GOOD);
    sg(0, 0, 0x08, attention, sizeof(attention)); /* recovered */
    expect_status(SCSI_GOOD);
    sg(SCSI_CHECK_CONDITION, 0, 0x08, attention, sizeof(attention));
    expect_sense(6, 0x2a, 0x04);
    assert_memory_equal(reply.sense, attention, sizeof(attention));
    for (size_t i = sizeof(attention); i < sizeof(reply.sense); i++)
        assert_int_equal(reply.sense[i], 0);
    /* The device's own words before the host adapter's. */
    sg(SCSI_CHECK_CONDITION, 0x10, 0x08, attention, sizeof(attention));
    expect_sense(6, 0x2a, 0x04);
    memset(longest, 0xee, sizeof(longest));
    sg(SCSI_CHECK_CONDITION, 0, 0, longest, sizeof(longest));
    assert_int_equal(reply.status, SCSI_CHECK_CONDITION);
    assert_memory_equal(reply.sense, longest, sizeof(reply.sense));
    sg(SCSI_CHECK_CONDITION, 0, 0, NULL, 0);
    expect_sense(0xb, 0x08, 0);
}

static void test_driver_status(void **state)
{
    sg(0, 0, 0x06, NULL, 0);
    expect_status(SCSI_BUSY);
    sg(0, 0, 0x36, NULL, 0); /* with a suggestion */
    expect_status(SCSI_BUSY);
    sg(0, 0, 0x04, NULL, 0);
    expect_sense(0xb, 0x08, 0);
    sg(0x18, 0, 0x04, NULL, 0);
    expect_status(SCSI_RESERVATION_CONFLICT);
}

static void kernel(bool nvme, int result, int error)
{
    soil();
    pr_status_kernel(nvme, result, error, &reply);
}

static void test_kernel_results(void **state)
{
    static const int unsupported[] = {EPERM, EACCES, EOPNOTSUPP, ENOTTY};

    for (unsigned nvme = 0; nvme < 2; nvme++) {
        for (size_t i = 0; i < ARRAY_SIZE(unsupported); i++) {
            kernel(nvme, -1, unsupported[i]);
            expect_sense(5, 0x20, 0);
        }
        kernel(nvme, -1, EINVAL);
        expect_sense(5, 0x24, 0);
        kernel(nvme, -1, EIO);
        expect_sense(0xb, 0, 6);
        kernel(nvme, 0, 0);
        expect_status(SCSI_GOOD);
        kernel(nvme, 0x18, 0);
        expect_status(SCSI_RESERVATION_CONFLICT);
        kernel(nvme, 2, 0);
        expect_sense(0xb, 0x08, 0);
        kernel(nvme, 0xe0000, 0);
        expect_sense(0xb, 0x29, 7);
        kernel(nvme, 0xf0000, 0);
        expect_sense(0xb, 0x08, 0);
        kernel(nvme, 0x10000, 0);
        expect_sense(0xb, 0x05, 0);
    }
    /* As kernel 6.1 says it. */
    kernel(false, 0x118, 0);
    expect_status(SCSI_RESERVATION_CONFLICT);
    kernel(false, 0x08, 0);
    expect_status(SCSI_BUSY);
    kernel(false, 0x30000, 0);
    expect_sense(0xb, 0x2e, 2);
    kernel(true, 0x83, 0);
    expect_status(SCSI_RESERVATION_CONFLICT);
    kernel(true, 0x4083, 0); /* "do not retry" */
    expect_status(SCSI_RESERVATION_CONFLICT);
    kernel(true, 0x4001, 0);
    expect_sense(5, 0x20, 0);
    kernel(true, 0x371, 0);
    expect_sense(0xb, 0x08, 0);
    /* Through pass-through 2 is what NVMe calls so. */
    soil();
    pr_status_nvme(2, 0, &reply);
    expect_sense(5, 0x24, 0);
}

static void test_multipath_results(void **state)
{
    for (int result = -3; result < 20; result++) {
        bool told;

        soil();
        told = pr_multipath_result(result, &reply);
        assert_int_equal(told, result != 2 && result != 3 && result != 4 && result != 8);
        if (result == 0)
            expect_status(SCSI_GOOD);
        else if (result == 1 || result == 11)
            expect_status(SCSI_RESERVATION_CONFLICT);
        else if (result == 5)
            expect_sense(5, 0x26, 0);
        else if (result == 6)
            expect_sense(6, 0x29, 2);
        else if (result == 7)
            expect_sense(5, 0x20, 0);
        else if (result == 9)
            expect_sense(0, 0, 0);
        else if (result == 13)
            expect_sense(2, 0x04, 3);
        else if (told)
            expect_sense(0xb, 0x08, 0);
    }
}

/* ---- What is refused at once ---- */

static const PrDeviceOptions options = {.timeout_ms = 1000};

static PrRequest in_request(unsigned action, uint16_t bytes)
{
    PrRequest request = {.data_bytes = bytes};

    pr_in_cdb_put(request.cdb, action, bytes);
    return request;
}

static PrRequest out_request(unsigned action, unsigned type, PrOutList list)
{
    PrRequest request = {.data_bytes = PR_OUT_LIST_BYTES};

    pr_out_cdb_put(request.cdb, action, type, PR_OUT_LIST_BYTES);
    pr_out_list_put(request.data, &list);
    return request;
}

static void execute(PrDeviceKind kind, bool writable, const PrRequest *request)
{
    PrDevice device = {.kind = kind, .readable = true, .writable = writable, .name = "test"};
    AUTO_CLOSE int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

    soil();
    pr_device_execute(&device, fd, request, &options, &reply);
    assert_int_equal(reply.data_bytes, 0);
}

static void test_gates(void **state)
{
    static const PrDeviceKind kinds[] = {PR_DEVICE_SCSI, PR_DEVICE_SG, PR_DEVICE_MULTIPATH, PR_DEVICE_NVME};
    PrRequest in = in_request(PR_IN_READ_KEYS, 8192);
    PrRequest out = out_request(PR_OUT_REGISTER, 0, (PrOutList){.service_key = 1});
    PrRequest clean = {.cdb = {PR_WIRE_CLEANUP_OPCODE}}, other = {.cdb = {0x12}};

    execute(PR_DEVICE_REFUSED, true, &in);
    expect_sense(5, 0x20, 0);
    execute(PR_DEVICE_REFUSED, true, &out);
    expect_sense(5, 0x20, 0);
    execute(PR_DEVICE_REFUSED, true, &clean);
    expect_sense(5, 0x20, 0);
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        PrDevice device = {.kind = kinds[i]};
        bool multipath = kinds[i] == PR_DEVICE_MULTIPATH;

        execute(kinds[i], false, &out);
        expect_sense(5, 0x20, 0);
        execute(kinds[i], false, &clean);
        expect_sense(5, 0x20, 0);
        execute(kinds[i], true, &other);
        expect_sense(5, 0x20, 0);
        if (!multipath) {
            execute(kinds[i], true, &clean);
            expect_status(SCSI_GOOD);
        }
        assert_int_equal(pr_device_needs_process(&device, &out), multipath);
        assert_int_equal(pr_device_needs_process(&device, &clean), multipath);
        assert_false(pr_device_needs_process(&device, &in));
        assert_int_equal(pr_device_needs_admin(&device), multipath || kinds[i] == PR_DEVICE_NVME);
    }
    /* What reaches /dev/null. */
    execute(PR_DEVICE_SCSI, false, &in);
    expect_sense(0xb, 0, 6);
    execute(PR_DEVICE_SG, true, &out);
    expect_sense(0xb, 0, 6);
    execute(PR_DEVICE_NVME, true, &out);
    expect_sense(5, 0x20, 0);
    execute(PR_DEVICE_NVME, false, &in);
    expect_sense(5, 0x20, 0);
}

static void expect_out(const PrRequest *request, unsigned key, unsigned asc, unsigned ascq)
{
    PrOutList list;

    soil();
    assert_false(pr_device_out_list(request, &list, &reply));
    expect_sense(key, asc, ascq);
    /* The same through the kernel's ioctls and the library. */
    execute(PR_DEVICE_NVME, true, request);
    expect_sense(key, asc, ascq);
    execute(PR_DEVICE_MULTIPATH, true, request);
    expect_sense(key, asc, ascq);
}

static void test_out_lists(void **state)
{
    PrOutList list = {.key = 1, .service_key = 2}, got;
    PrRequest request;

    for (unsigned action = PR_OUT_REGISTER_AND_MOVE; action < 32; action++) {
        request = out_request(action, PR_TYPE_WRITE_EXCLUSIVE, list);
        expect_out(&request, 5, 0x24, 0);
    }
    for (unsigned type = 0; type < 16; type++) {
        request = out_request(PR_OUT_RESERVE, type, list);
        if (type != 1 && type != 3 && (type < 5 || type > 8))
            expect_out(&request, 5, 0x24, 0);
        else
            assert_true(pr_device_out_list(&request, &got, &reply));
        /* Of no meaning here. */
        request = out_request(PR_OUT_CLEAR, type, list);
        assert_true(pr_device_out_list(&request, &got, &reply));
    }
    request = out_request(PR_OUT_RELEASE, PR_TYPE_WRITE_EXCLUSIVE, list);
    request.cdb[2] |= 0x10; /* scope */
    expect_out(&request, 5, 0x24, 0);
    for (uint32_t bytes = 0; bytes <= PR_DATA_BYTES; bytes += bytes == 25 ? PR_DATA_BYTES - 25 : 1) {
        request = out_request(PR_OUT_REGISTER, 0, list);
        request.data_bytes = bytes;
        if (bytes != PR_OUT_LIST_BYTES)
            expect_out(&request, 5, 0x1a, 0);
    }
    list.spec_i_pt = true;
    request = out_request(PR_OUT_REGISTER, 0, list);
    expect_out(&request, 5, 0x26, 0);
    request.data_bytes = 52;
    expect_out(&request, 5, 0x26, 0);
    list.spec_i_pt = false;
    list.aptpl = true;
    request = out_request(PR_OUT_REGISTER_AND_IGNORE, 0, list);
    assert_true(pr_device_out_list(&request, &got, &reply));
    assert_true(got.aptpl && got.key == 1 && got.service_key == 2);
}

static void test_kernel_refusals(void **state)
{
    PrRequest request = out_request(PR_OUT_REGISTER, 0, (PrOutList){.service_key = 2, .all_tg_pt = true});

    execute(PR_DEVICE_NVME, true, &request);
    expect_sense(5, 0x26, 0);
    /* NVMe would take the key 0 for "any". */
    for (unsigned action = PR_OUT_RESERVE; action <= PR_OUT_PREEMPT_AND_ABORT; action++) {
        request = out_request(action, PR_TYPE_WRITE_EXCLUSIVE, (PrOutList){.service_key = 2});
        execute(PR_DEVICE_NVME, true, &request);
        expect_status(SCSI_RESERVATION_CONFLICT);
    }
    for (unsigned action = PR_IN_READ_FULL_STATUS; action < 32; action++) {
        request = in_request(action, 8192);
        execute(PR_DEVICE_NVME, true, &request);
        expect_sense(5, 0x24, 0);
    }
}

/* ---- Data that is made here ---- */

static void test_capabilities(void **state)
{
    PrDevice device = {.kind = PR_DEVICE_NVME, .readable = true};
    PrRequest request = in_request(PR_IN_REPORT_CAPABILITIES, 8192);
    PrCapabilities can;

    soil();
    pr_device_execute(&device, -1, &request, &options, &reply);
    expect_status(SCSI_GOOD);
    assert_int_equal(reply.data_bytes, PR_CAPABILITIES_BYTES);
    assert_true(pr_capabilities_get(reply.data, reply.data_bytes, &can));
    assert_true(can.persist_through_power_loss && can.type_mask_valid);
    assert_true(pr_type_mask_has(can.type_mask, PR_TYPE_EXCLUSIVE_ACCESS_ALL));
    request = in_request(PR_IN_REPORT_CAPABILITIES, 3);
    pr_device_execute(&device, -1, &request, &options, &reply);
    assert_int_equal(reply.data_bytes, 3);
    request = in_request(PR_IN_REPORT_CAPABILITIES, 0);
    pr_device_execute(&device, -1, &request, &options, &reply);
    expect_status(SCSI_GOOD);
    assert_int_equal(reply.data_bytes, 0);

    pr_nvme_rescap(0, &can);
    assert_true(!can.persist_through_power_loss && can.type_mask_valid && can.type_mask == 0);
    pr_nvme_rescap(0xff, &can);
    assert_true(can.persist_through_power_loss);
    pr_nvme_rescap(1 << 2 | 1 << 5, &can);
    assert_false(can.persist_through_power_loss);
    for (unsigned type = 1; type <= 8; type++) {
        assert_int_equal(pr_type_mask_has(can.type_mask, type),
            type == PR_TYPE_EXCLUSIVE_ACCESS || type == PR_TYPE_WRITE_EXCLUSIVE_ALL);
    }
}

static void test_types(void **state)
{
    static const PrType expected[] = {0, 1, 3, 5, 6, 7, 8, 0, 0};

    for (unsigned i = 0; i < ARRAY_SIZE(expected); i++)
        assert_int_equal(pr_kernel_type_to_scsi(i), expected[i]);
    assert_int_equal(pr_kernel_type_to_scsi(UINT32_MAX), PR_TYPE_NONE);
}

static void test_keys(void **state)
{
    static const uint64_t keys[] = {0x1122334455667788, 2};
    PrRequest request = in_request(PR_IN_READ_KEYS, 8192);
    PrInHeader header;
    uint64_t key;

    soil();
    pr_kernel_keys_reply(&request, 7, keys, 2, 2, &reply);
    expect_status(SCSI_GOOD);
    assert_int_equal(reply.data_bytes, 24);
    assert_true(pr_in_header_get(reply.data, reply.data_bytes, &header));
    assert_int_equal(header.generation, 7);
    assert_int_equal(header.additional_bytes, 16);
    assert_true(pr_key_get(reply.data, reply.data_bytes, 0, &key) && key == keys[0]);
    assert_true(pr_key_get(reply.data, reply.data_bytes, 1, &key) && key == keys[1]);
    /* Cut as it was asked for; the header still says how many there are. */
    request = in_request(PR_IN_READ_KEYS, 12);
    pr_kernel_keys_reply(&request, 7, keys, 2, 300, &reply);
    assert_int_equal(reply.data_bytes, 12);
    assert_true(pr_in_header_get(reply.data, reply.data_bytes, &header));
    assert_int_equal(header.additional_bytes, 2400);
}

static void test_reservations(void **state)
{
    PrRequest request = in_request(PR_IN_READ_RESERVATION, 8192);
    PrReservation held;

    soil();
    pr_kernel_reservation_reply(&request, 9, 0xabc, PR_TYPE_NONE, &reply);
    assert_int_equal(reply.data_bytes, PR_IN_HEADER_BYTES);
    assert_int_equal(get_be32(reply.data), 9);
    assert_int_equal(get_be32(reply.data + 4), 0);
    pr_kernel_reservation_reply(&request, 9, 0xabc, PR_TYPE_EXCLUSIVE_ACCESS, &reply);
    assert_int_equal(reply.data_bytes, 24);
    assert_true(pr_reservation_get(reply.data, reply.data_bytes, &held));
    assert_true(held.key == 0xabc && held.type == PR_TYPE_EXCLUSIVE_ACCESS && held.scope == 0);
    pr_kernel_reservation_reply(&request, 9, 0xabc, PR_TYPE_WRITE_EXCLUSIVE_ALL, &reply);
    assert_true(pr_reservation_get(reply.data, reply.data_bytes, &held));
    assert_true(held.key == 0 && held.type == PR_TYPE_WRITE_EXCLUSIVE_ALL);
}

/* A report with `hosts` hosts of which the second holds, keys 101, 102, ... */
static void make_report(uint8_t *report, unsigned hosts, bool extended)
{
    size_t header = extended ? 64 : 24, entry = extended ? 64 : 24, key = extended ? 8 : 16;

    memset(report, 0, NVME_REPORT_BYTES);
    put_le32(report, 5);
    report[4] = 4;
    put_le16(report + 5, (uint16_t)hosts);
    for (unsigned i = 0; i < hosts && header + (i + 1) * entry <= NVME_REPORT_BYTES; i++) {
        report[header + i * entry + 2] = i == 1;
        put_le64(report + header + i * entry + key, 101 + i);
    }
}

static void test_nvme_report(void **state)
{
    static uint8_t report[NVME_REPORT_BYTES];
    PrRequest keys = in_request(PR_IN_READ_KEYS, 8192),
              reservation = in_request(PR_IN_READ_RESERVATION, 8192);
    PrReservation held;
    uint64_t key;

    for (unsigned extended = 0; extended < 2; extended++) {
        soil();
        make_report(report, 3, extended);
        pr_nvme_report_reply(report, extended, &keys, &reply);
        assert_int_equal(reply.data_bytes, 32);
        assert_int_equal(get_be32(reply.data), 5);
        assert_true(pr_key_get(reply.data, reply.data_bytes, 2, &key) && key == 103);
        pr_nvme_report_reply(report, extended, &reservation, &reply);
        assert_true(pr_reservation_get(reply.data, reply.data_bytes, &held));
        assert_true(held.key == 102 && held.type == PR_TYPE_EXCLUSIVE_ACCESS_REGISTRANTS);
        /* More hosts than the report has room for, as many as the field can say. */
        make_report(report, 65535, extended);
        pr_nvme_report_reply(report, extended, &keys, &reply);
        assert_int_equal(reply.data_bytes, 8 + 8 * (extended ? 255 : 681));
        assert_int_equal(get_be32(reply.data + 4), 65535 * 8);
        make_report(report, 0, extended);
        report[4] = 0;
        pr_nvme_report_reply(report, extended, &reservation, &reply);
        assert_int_equal(reply.data_bytes, 8);
    }
}

/* ---- multipathd ---- */

typedef struct Server {
    int fd;
    const void *answer;
    size_t answer_bytes; /* all that it sends, length included */
    char command[64];
} Server;

static void *serve(void *arg)
{
    Server *server = arg;
    size_t length = 0;

    if (recv(server->fd, &length, sizeof(length), MSG_WAITALL) == sizeof(length) &&
        length <= sizeof(server->command))
        (void)!recv(server->fd, server->command, length, MSG_WAITALL);
    for (size_t i = 0; i < server->answer_bytes; i++)
        (void)!send(server->fd, (const char *)server->answer + i, 1, MSG_NOSIGNAL);
    shutdown(server->fd, SHUT_WR);
    return NULL;
}

static int ask(const void *data, size_t bytes, char text[16])
{
    Server server = {.answer = data, .answer_bytes = bytes};
    pthread_t thread;
    int pair[2], r;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    server.fd = pair[1];
    assert_int_equal(pthread_create(&thread, NULL, serve, &server), 0);
    r = pr_multipathd_ask_fd(pair[0], "unsetprkey map dm-3", 10000, text, 16);
    close(pair[0]);
    pthread_join(thread, NULL);
    close(pair[1]);
    assert_string_equal(server.command, "unsetprkey map dm-3");
    return r;
}

static int answer(size_t length, const char *text, size_t bytes, char got[16])
{
    char data[128];

    memcpy(data, &length, sizeof(length));
    memcpy(data + sizeof(length), text, bytes);
    return ask(data, sizeof(length) + bytes, got);
}

static void test_multipathd(void **state)
{
    char text[16];

    assert_int_equal(answer(4, "ok\n", 4, text), 0);
    assert_string_equal(text, "ok");
    assert_int_equal(answer(2, "ok", 2, text), 0); /* no NUL */
    assert_string_equal(text, "ok");
    assert_int_equal(answer(0, "", 0, text), 0);
    assert_string_equal(text, "");
    assert_int_equal(answer(29, "a good deal longer than that", 29, text), 0);
    assert_string_equal(text, "a good deal lon");
    assert_int_equal(answer(4, "ok", 2, text), -ECONNRESET);
    assert_int_equal(answer(SIZE_MAX, "ok", 3, text), -EMSGSIZE);
    assert_int_equal(answer(65537, "ok", 3, text), -EMSGSIZE);
    assert_int_equal(ask("", 0, text), -ECONNRESET);
    assert_int_equal(ask("1234567", 7, text), -ECONNRESET);
}

static void test_multipathd_silence(void **state)
{
    char text[16];
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(pr_multipathd_ask_fd(pair[0], "x", 30, text, sizeof(text)), -ETIMEDOUT);
    close(pair[0]);
    close(pair[1]);
}

static void test_multipathd_place(void **state)
{
    AUTO_CLOSE int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    AUTO_FREE char *name = str_printf("granary-test-%d", (int)getpid());
    AUTO_FREE char *place = str_printf("@%s", name);
    char longest[200] = {0};
    int fd;

    memcpy(address.sun_path + 1, name, strlen(name));
    assert_int_equal(bind(listener, (struct sockaddr *)&address,
                         offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name)),
        0);
    assert_int_equal(listen(listener, 1), 0);
    setenv("MULTIPATH_SOCKET_NAME", place, 1);
    fd = pr_multipathd_connect();
    assert_true(fd >= 0);
    close(fd);
    setenv("MULTIPATH_SOCKET_NAME", "/nonexistent/socket", 1);
    assert_int_equal(pr_multipathd_connect(), -ENOENT);
    memset(longest, 'l', sizeof(longest) - 1);
    setenv("MULTIPATH_SOCKET_NAME", longest, 1);
    assert_int_equal(pr_multipathd_connect(), -EINVAL);
}

/* No multipathd, no library, not user 0, or no such map: always an orderly refusal. */
static void test_multipath_without(void **state)
{
    PrRequest request = out_request(PR_OUT_REGISTER, 0, (PrOutList){.service_key = 1});
    PrRequest clean = {.cdb = {PR_WIRE_CLEANUP_OPCODE}};

    setenv("MULTIPATH_SOCKET_NAME", "/nonexistent/socket", 1);
    execute(PR_DEVICE_MULTIPATH, true, &request);
    expect_sense(2, 0x04, 3);
    execute(PR_DEVICE_MULTIPATH, true, &clean);
    expect_sense(2, 0x04, 3);
    assert_int_equal(pr_paths_execute(0, &request, 1000, &reply), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errno),
        cmocka_unit_test(test_host_status),
        cmocka_unit_test(test_scsi_status),
        cmocka_unit_test(test_driver_status),
        cmocka_unit_test(test_kernel_results),
        cmocka_unit_test(test_multipath_results),
        cmocka_unit_test(test_gates),
        cmocka_unit_test(test_out_lists),
        cmocka_unit_test(test_kernel_refusals),
        cmocka_unit_test(test_capabilities),
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_reservations),
        cmocka_unit_test(test_nvme_report),
        cmocka_unit_test(test_multipathd),
        cmocka_unit_test(test_multipathd_silence),
        cmocka_unit_test(test_multipathd_place),
        cmocka_unit_test(test_multipath_without),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
