/* SPDX-License-Identifier: Apache-2.0 */
#include "pr-helper/privileges.h"

#include "pr-helper/options.h"

#include <cap-ng.h>
#include <grp.h>
#include <sys/prctl.h>
#include <unistd.h>

int privileges_check(Error *err)
{
    capng_get_caps_process();
    if (capng_have_capability(CAPNG_PERMITTED, CAP_SYS_RAWIO))
        return 0;
    err_set(err, -EPERM, "Failed to drop privileges: there is no capability CAP_SYS_RAWIO to keep");
    err_hint(err, "Start the program as root, or with CAP_SYS_RAWIO in its ambient set.");
    return -EPERM;
}

/* Keeps of what the process has only the capabilities listed (ends with -1); effective: which of them are in
 * force (NULL: all). */
static int keep(const int *permitted, const int *effective, Error *err)
{
    bool can_bound, has[CAP_LAST_CAP + 1];

    capng_get_caps_process();
    can_bound = capng_have_capability(CAPNG_EFFECTIVE, CAP_SETPCAP);
    for (int cap = 0; cap <= CAP_LAST_CAP; cap++)
        has[cap] = capng_have_capability(CAPNG_PERMITTED, (unsigned)cap);

    capng_clear(CAPNG_SELECT_ALL);
    for (const int *cap = permitted; *cap >= 0; cap++) {
        if (has[*cap])
            capng_updatev(CAPNG_ADD, CAPNG_PERMITTED | CAPNG_BOUNDING_SET, (unsigned)*cap, -1);
    }
    for (const int *cap = effective; *cap >= 0; cap++) {
        if (has[*cap])
            capng_update(CAPNG_ADD, CAPNG_EFFECTIVE, (unsigned)*cap);
    }
    /* Without CAP_SETPCAP the bounding set stays; no_new_privs makes it meaningless. */
    if (capng_apply(can_bound ? CAPNG_SELECT_ALL : CAPNG_SELECT_CAPS | CAPNG_SELECT_AMBIENT) != 0)
        return err_set(err, -EPERM, "Failed to drop privileges");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return err_set_errno(err, -errno, "Failed to drop privileges");
    return 0;
}

static int change_ids(const Options *options)
{
    if (geteuid() == 0 && setgroups(0, NULL) < 0)
        return -errno;
    if (options->has_group && setresgid(options->group, options->group, options->group) < 0)
        return -errno;
    if (options->has_user && setresuid(options->user, options->user, options->user) < 0)
        return -errno;
    return 0;
}

int privileges_become_server(const Options *options, Error *err)
{
    static const int none[] = {-1};
    int r;

    /* The bounding set can only be emptied while there are capabilities, so before the user changes. */
    capng_get_caps_process();
    if (capng_have_capability(CAPNG_EFFECTIVE, CAP_SETPCAP)) {
        capng_clear(CAPNG_SELECT_BOUNDS);
        if (capng_apply(CAPNG_SELECT_BOUNDS) != 0)
            return err_set(err, -EPERM, "Failed to drop privileges");
    }
    r = change_ids(options);
    if (r < 0)
        return err_set_errno(err, r, "Failed to drop privileges");
    return keep(none, none, err);
}

int privileges_become_keeper(Error *err)
{
    /* The socket's directory may belong to the clients' user. */
    static const int caps[] = {CAP_SYS_RAWIO, CAP_SYS_ADMIN, CAP_DAC_OVERRIDE, -1};

    return keep(caps, caps, err);
}

int privileges_become_worker(Error *err)
{
    static const int permitted[] = {CAP_SYS_RAWIO, CAP_SYS_ADMIN, -1};
    static const int effective[] = {CAP_SYS_RAWIO, -1};

    return keep(permitted, effective, err);
}

void privileges_raise_admin(void)
{
    capng_get_caps_process();
    if (!capng_have_capability(CAPNG_PERMITTED, CAP_SYS_ADMIN))
        return;
    capng_update(CAPNG_ADD, CAPNG_EFFECTIVE, CAP_SYS_ADMIN);
    capng_apply(CAPNG_SELECT_CAPS);
}
