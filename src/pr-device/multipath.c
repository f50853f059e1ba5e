/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PERSISTENT RESERVE OUT on a multipath map by libmpathpersist, which registers on every path and has
 * multipathd give the key to paths that come back. The library is loaded when it is needed: distributions
 * ship it with multipath-tools, mostly without a header, so what is used of it is declared here (node
 * LIBMPATHPERSIST_2.1.0, multipath-tools 0.8.6 and later).
 *
 * Traps of the library: it calls exit() when /dev/mapper/control cannot be opened; multipathd takes keys from
 * uid 0 only; calls from two threads block each other for half a minute; when several paths register, one
 * thread clears SPEC_I_PT while another looks at it, so TransportIDs cannot be passed; and its RELEASE, when
 * the reservation is still there afterwards, removes the registrations of everybody (see release()).
 */
#include "pr-device/pr-device-priv.h"

#include "base/endian.h"
#include "base/log.h"
#include "base/mem.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define LIBRARY "libmpathpersist.so.0"
#define LIBRARY_NODE "LIBMPATHPERSIST_2.1.0"

/* struct prout_param_descriptor of mpath_persist.h; behind it would come pointers to TransportIDs. */
typedef struct MpathOutList {
    uint8_t key[8];
    uint8_t service_key[8];
    uint32_t obsolete;
    uint8_t flags;
    uint8_t reserved;
    uint16_t obsolete1;
    uint8_t private_buffer[8192];
    uint32_t transport_ids;
    void *transport_id[1];
} MpathOutList;
_Static_assert(offsetof(MpathOutList, flags) == 20, "layout of mpath_persist.h");
_Static_assert(offsetof(MpathOutList, private_buffer) == PR_OUT_LIST_BYTES, "layout of mpath_persist.h");

enum {
    MPATH_FLAG_APTPL = 0x01,
    MPATH_FLAG_ALL_TG_PT = 0x04,
};

/* What mpath_persistent_reserve_out() returns. */
enum {
    MPATH_SUCCESS = 0,
    MPATH_SYNTAX_ERROR = 1, /* also: neither key is the one that multipathd keeps for the map */
    MPATH_NOT_READY = 2,
    MPATH_MEDIUM_ERROR = 3,
    MPATH_HARDWARE_ERROR = 4,
    MPATH_ILLEGAL_REQUEST = 5,
    MPATH_UNIT_ATTENTION = 6,
    MPATH_INVALID_OPCODE = 7,
    MPATH_ABORTED_COMMAND = 8,
    MPATH_NO_SENSE = 9,
    MPATH_RESERVATION_CONFLICT = 11,
    MPATH_DM_ERROR = 13, /* device mapper, multipathd, or no usable path */
};

typedef struct Library {
    int (*init)(void);
    int (*reserve_out)(
        int fd, int action, int scope, unsigned type, MpathOutList *list, int noisy, int verbose);
} Library;

/* Of a command to multipathd, which may be busy with its paths. */
#define MULTIPATHD_TIMEOUT_MS 60000

#define SENSE_RESET_BY_BUS ((ScsiSense){SCSI_KEY_UNIT_ATTENTION, 0x29, 0x02})
#define SENSE_NO_INFORMATION ((ScsiSense){SCSI_KEY_NO_SENSE, 0x00, 0x00})
#define SENSE_INVALID_RELEASE ((ScsiSense){SCSI_KEY_ILLEGAL_REQUEST, 0x26, 0x04})

bool pr_multipath_result(int result, PrReply *reply)
{
    switch (result) {
    case MPATH_SUCCESS:
        pr_reply_good(reply);
        return true;
    case MPATH_NOT_READY:
    case MPATH_MEDIUM_ERROR:
    case MPATH_HARDWARE_ERROR:
    case MPATH_ABORTED_COMMAND:
        return false;
    case MPATH_ILLEGAL_REQUEST:
        pr_reply_check(reply, SCSI_SENSE_INVALID_PARAMETER);
        return true;
    case MPATH_UNIT_ATTENTION:
        pr_reply_check(reply, SENSE_RESET_BY_BUS);
        return true;
    case MPATH_INVALID_OPCODE:
        pr_reply_check(reply, SCSI_SENSE_INVALID_OPCODE);
        return true;
    case MPATH_NO_SENSE:
        pr_reply_check(reply, SENSE_NO_INFORMATION);
        return true;
    case MPATH_SYNTAX_ERROR:
    case MPATH_RESERVATION_CONFLICT:
        pr_reply_status(reply, SCSI_RESERVATION_CONFLICT);
        return true;
    case MPATH_DM_ERROR:
        pr_reply_check(reply, SCSI_SENSE_NOT_READY_INTERVENTION);
        return true;
    default:
        pr_reply_check(reply, SCSI_SENSE_COMMUNICATION_FAILURE);
        return true;
    }
}

/* ---- The library ---- */

/* POSIX has functions and data share a representation; the compiler wants it said like this. */
static bool load_symbol(void *library, const char *name, void *ret_function)
{
    void *symbol = dlvsym(library, name, LIBRARY_NODE);

    memcpy(ret_function, &symbol, sizeof(symbol));
    return symbol;
}

/* Never unloaded: threads of it may still run. */
static bool load_library(const PrDevice *device, Library *ret_library)
{
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);

    if (!library) {
        log_warn("%s: no reservation on a multipath map without " LIBRARY " (%s); install multipath-tools",
            device->name, dlerror());
        return false;
    }
    if (!load_symbol(library, "libmpathpersist_init", &ret_library->init) ||
        !load_symbol(library, "mpath_persistent_reserve_out", &ret_library->reserve_out)) {
        log_warn(
            "%s: " LIBRARY " lacks " LIBRARY_NODE "; multipath-tools 0.8.6 or later is needed", device->name);
        return false;
    }
    if (ret_library->init() != 0) {
        log_warn("%s: " LIBRARY " cannot be started; check multipath.conf", device->name);
        return false;
    }
    return true;
}

/* Whatever would leave a registration half made or unknown to multipathd. */
static bool ready(const PrDevice *device)
{
    int fd;

    if (geteuid() != 0) {
        log_warn("%s: multipathd takes reservation keys from user 0 only, this is user %u", device->name,
            (unsigned)geteuid());
        return false;
    }
    fd = pr_multipathd_connect();
    if (fd < 0) {
        log_warn("%s: no reservation on a multipath map without multipathd (%s); start multipathd",
            device->name, strerror(-fd));
        return false;
    }
    fd_close(fd);
    return true;
}

/* ---- Sense data that the library keeps for itself ---- */

/* A sense of that kind is likely still there. */
static void ask_for_sense(int fd, unsigned timeout_ms, PrReply *reply)
{
    static const uint8_t test_unit_ready[6] = {0};
    uint8_t sense[SCSI_SENSE_BYTES] = {0};
    sg_io_hdr_t hdr = {
        .interface_id = 'S',
        .dxfer_direction = SG_DXFER_NONE,
        .cmd_len = sizeof(test_unit_ready),
        .cmdp = (uint8_t *)test_unit_ready,
        .mx_sb_len = sizeof(sense),
        .sbp = sense,
        .timeout = timeout_ms,
    };
    int r = ioctl(fd, SG_IO, &hdr);

    pr_status_sg(r < 0 ? errno : 0, &hdr, reply);
    if (reply->status == SCSI_GOOD)
        pr_reply_check(reply, SCSI_SENSE_COMMUNICATION_FAILURE);
}

/* ---- Commands ---- */

/* The answer to a question about the map; "" if there is none. */
static void ask_multipathd(const PrDevice *device, const char *what, char ret_answer[64])
{
    char command[64];

    ret_answer[0] = '\0';
    snprintf(command, sizeof(command), "%s map dm-%u", what, minor(device->number));
    if (pr_multipathd_ask(command, MULTIPATHD_TIMEOUT_MS, ret_answer, 64) < 0)
        ret_answer[0] = '\0';
}

static bool multipathd_has_no_key(const PrDevice *device)
{
    char answer[64];

    ask_multipathd(device, "getprkey", answer);
    return str_eq(answer, "none");
}

static int reserve_out(const Library *library, int fd, const PrRequest *request, const PrOutList *list)
{
    MpathOutList out = {
        .flags = (list->aptpl ? MPATH_FLAG_APTPL : 0) | (list->all_tg_pt ? MPATH_FLAG_ALL_TG_PT : 0)};

    put_be64(out.key, list->key);
    put_be64(out.service_key, list->service_key);
    return library->reserve_out(fd, (int)pr_cdb_action(request->cdb), (int)pr_cdb_scope(request->cdb),
        pr_cdb_type(request->cdb), &out, 0, 0);
}

/* Unregisters, whatever the key. */
static int forget_key(const Library *library, int fd)
{
    static const PrOutList no_key;
    PrRequest request = {.data_bytes = PR_OUT_LIST_BYTES};

    pr_out_cdb_put(request.cdb, PR_OUT_REGISTER_AND_IGNORE, 0, PR_OUT_LIST_BYTES);
    return reserve_out(library, fd, &request, &no_key);
}

/*
 * Whether a registration failed, or succeeded to no good, because multipathd keeps no key for the map: a path
 * that returns later would not get it, and writes over that path would fail. Newer libraries refuse with what
 * is otherwise a wrong key; older ones register the paths that are there, which is taken back.
 */
static bool lacks_configuration(const Library *library, const PrDevice *device, int fd, unsigned action,
    const PrOutList *list, int result)
{
    bool first = action == PR_OUT_REGISTER_AND_IGNORE || (action == PR_OUT_REGISTER && !list->key);

    if (!first || !list->service_key || (result != MPATH_SUCCESS && result != MPATH_SYNTAX_ERROR) ||
        !multipathd_has_no_key(device))
        return false;
    log_warn("%s: multipathd keeps no reservation key for this map; put \"reservation_key file\" into the "
             "defaults section of multipath.conf and reconfigure multipathd",
        device->name);
    if (result == MPATH_SUCCESS && forget_key(library, fd) != MPATH_SUCCESS)
        log_warn("%s: the registration on the present paths could not be taken back", device->name);
    return true;
}

static void by_library(const Library *library, const PrDevice *device, int fd, const PrRequest *request,
    const PrOutList *list, unsigned timeout_ms, PrReply *reply)
{
    int result = reserve_out(library, fd, request, list);

    if (lacks_configuration(library, device, fd, pr_cdb_action(request->cdb), list, result))
        return pr_reply_check(reply, SCSI_SENSE_NOT_READY_INTERVENTION);
    if (!pr_multipath_result(result, reply))
        return ask_for_sense(fd, timeout_ms, reply);
    if (result == MPATH_DM_ERROR)
        log_warn("%s: libmpathpersist failed at device mapper or multipathd, or no path is usable; see "
                 "multipathd's log and \"multipath -ll\"",
            device->name);
}

/* ---- RELEASE and PREEMPT ---- */

/* Reads the reservation; false with the reply when that failed. *ret_held: key 0 and no type when there is
 * none. */
static bool read_reservation(int fd, unsigned timeout_ms, PrReservation *ret_held, PrReply *reply)
{
    PrRequest read = {.data_bytes = PR_IN_HEADER_BYTES + PR_RESERVATION_BYTES};

    pr_in_cdb_put(read.cdb, PR_IN_READ_RESERVATION, (uint16_t)read.data_bytes);
    pr_sg_execute(fd, &read, timeout_ms, reply);
    if (reply->status != SCSI_GOOD)
        return false;
    if (pr_reservation_get(reply->data, reply->data_bytes, ret_held))
        return true;
    pr_reply_check(reply, SCSI_SENSE_COMMUNICATION_FAILURE); /* the answer does not tell */
    return false;
}

/* Since 0.13, where the corner cases of reservations were done anew. */
static bool multipathd_knows_holders(const PrDevice *device)
{
    char answer[64];

    ask_multipathd(device, "getprhold", answer);
    return str_eq(answer, "set") || str_eq(answer, "unset") || str_eq(answer, "unknown");
}

/*
 * PREEMPT of one's own key moves the reservation to the path that the command took and unregisters all others
 * with that key, which are this host's other paths: a migration's destination does so. Since 0.13 the library
 * looks after it.
 */
static void preempt(const Library *library, const PrDevice *device, int fd, const PrRequest *request,
    const PrOutList *list, unsigned timeout_ms, PrReply *reply)
{
    PrRequest again = {.data_bytes = PR_OUT_LIST_BYTES};
    PrOutList same = {.service_key = list->key};
    char kept[64];

    by_library(library, device, fd, request, list, timeout_ms, reply);
    if (reply->status != SCSI_GOOD || list->key != list->service_key || multipathd_knows_holders(device))
        return;
    ask_multipathd(device, "getprkey", kept);
    same.aptpl = strstr(kept, ":aptpl");
    pr_out_cdb_put(again.cdb, PR_OUT_REGISTER_AND_IGNORE, 0, PR_OUT_LIST_BYTES);
    by_library(library, device, fd, &again, &same, timeout_ms, reply);
}

/* The holder's path is not known, so all are asked. */
static void release_over_paths(const PrDevice *device, int fd, const PrRequest *request, uint64_t key,
    unsigned timeout_ms, PrReply *reply)
{
    PrReservation held;
    unsigned paths = pr_paths_execute(device->number, request, timeout_ms, reply);

    /* The first answer may be a unit attention about what just happened. */
    if (!read_reservation(fd, timeout_ms, &held, reply) && !read_reservation(fd, timeout_ms, &held, reply))
        return;
    if (held.key != key)
        return pr_reply_good(reply);
    log_warn("%s: RELEASE over the %u running paths left the reservation: the path that holds it is down; "
             "bring it back or clear the reservation",
        device->name, paths);
    pr_reply_check(reply, SCSI_SENSE_NOT_READY_INTERVENTION);
}

/*
 * Before 0.13 the library sends RELEASE over all paths and then looks whether the reservation has gone. If
 * not, it takes it for one that a dead path of this host holds, sends CLEAR, and registers all others again,
 * which fails: a cluster loses its registrations because one member released what it did not hold, or while a
 * path was down. So the library only sees the holder's release, and the old one not even that.
 */
static void release(const Library *library, const PrDevice *device, int fd, const PrRequest *request,
    const PrOutList *list, unsigned timeout_ms, PrReply *reply)
{
    PrReservation held;

    if (!read_reservation(fd, timeout_ms, &held, reply))
        return;
    /* Of nobody, of somebody else, of all registrants: one path does, and the device answers. */
    if (held.key == 0 || held.key != list->key)
        return pr_sg_execute(fd, request, timeout_ms, reply);
    if (held.scope != pr_cdb_scope(request->cdb) || held.type != pr_cdb_type(request->cdb))
        return pr_reply_check(reply, SENSE_INVALID_RELEASE);
    if (multipathd_knows_holders(device))
        return by_library(library, device, fd, request, list, timeout_ms, reply);
    release_over_paths(device, fd, request, list->key, timeout_ms, reply);
}

/* ---- Clean-up ---- */

static bool multipathd_does(const PrDevice *device, const char *what)
{
    char answer[64];

    ask_multipathd(device, what, answer);
    if (str_eq(answer, "ok"))
        return true;
    log_warn("%s: multipathd did not do \"%s\": %s", device->name, what, *answer ? answer : "no answer");
    return false;
}

/*
 * The migration source forgets its key. multipathd must forget first: it would otherwise put the key back on
 * the next path that returns, and pre-empt the destination.
 */
static void cleanup(
    const Library *library, const PrDevice *device, int fd, unsigned timeout_ms, PrReply *reply)
{
    if (!multipathd_does(device, "unsetprkey") || !multipathd_does(device, "unsetprstatus"))
        return pr_reply_check(reply, SCSI_SENSE_NOT_READY_INTERVENTION);
    if (!pr_multipath_result(forget_key(library, fd), reply))
        ask_for_sense(fd, timeout_ms, reply);
}

void pr_multipath_execute(
    const PrDevice *device, int fd, const PrRequest *request, unsigned timeout_ms, PrReply *ret_reply)
{
    bool clean = request->cdb[0] == PR_WIRE_CLEANUP_OPCODE;
    unsigned action = pr_cdb_action(request->cdb);
    PrOutList list;
    Library library;

    memset(ret_reply, 0, sizeof(*ret_reply));
    if (!clean && !pr_device_out_list(request, &list, ret_reply))
        return;
    if (!ready(device) || !load_library(device, &library))
        return pr_reply_check(ret_reply, SCSI_SENSE_NOT_READY_INTERVENTION);
    if (clean)
        cleanup(&library, device, fd, timeout_ms, ret_reply);
    else if (action == PR_OUT_RELEASE)
        release(&library, device, fd, request, &list, timeout_ms, ret_reply);
    else if (action == PR_OUT_PREEMPT || action == PR_OUT_PREEMPT_AND_ABORT)
        preempt(&library, device, fd, request, &list, timeout_ms, ret_reply);
    else
        by_library(&library, device, fd, request, &list, timeout_ms, ret_reply);
    ret_reply->data_bytes = 0;
}
