/*
 * Descriptors that outlive the server
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "libivshmem2-core.h"
#include "libivshmem2-util.h"
#include "record.h"
#include "store.h"

/*
 * systemd passes the names of all that it keeps in one environment variable,
 * which Linux limits to 128 KiB.
 */
#define MAX_NAMES       60000

/* Seconds that the manager has for each message before the server is ready */
#define SEND_TIMEOUT    10

/* What was passed */

/* The environment variable's number, or 0 */
static uint64_t env_number(const char *name)
{
    const char *value = g_getenv(name);
    const char *end;
    uint64_t n;

    return value && ivshmem2_scan_number(value, 10, &n, &end) && !*end ? n : 0;
}

static int socket_option(int fd, int option)
{
    int value = -1;
    socklen_t len = sizeof(value);

    return getsockopt(fd, SOL_SOCKET, option, &value, &len) < 0 ? -1 : value;
}

static bool is_listening(int fd)
{
    return socket_option(fd, SO_DOMAIN) == AF_UNIX &&
           socket_option(fd, SO_TYPE) == SOCK_STREAM &&
           socket_option(fd, SO_ACCEPTCONN) == 1;
}

static void sort_one(Ivshmem2Inherited *in, int fd)
{
    if (in->listen_fd < 0 && is_listening(fd)) {
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
        in->listen_fd = fd;
    } else if (in->record_fd < 0 && ivshmem2_record_recognize(fd)) {
        in->record_fd = fd;
    } else if (fcntl(fd, F_GET_SEALS) >= 0) {
        g_array_append_val(in->files, fd);
    } else if (ivshmem2_check_eventfd(fd, NULL)) {
        g_array_append_val(in->eventfds, fd);
    } else {
        g_array_append_val(in->others, fd);
    }
}

void ivshmem2_inherited_init_fds(Ivshmem2Inherited *in, const int *fds,
                                 size_t n)
{
    *in = (Ivshmem2Inherited) {
        .listen_fd = -1,
        .record_fd = -1,
        .files = g_array_new(FALSE, FALSE, sizeof(int)),
        .eventfds = g_array_new(FALSE, FALSE, sizeof(int)),
        .others = g_array_new(FALSE, FALSE, sizeof(int)),
    };
    for (size_t i = 0; i < n; i++) {
        sort_one(in, fds[i]);
    }
}

void ivshmem2_inherited_init(Ivshmem2Inherited *in)
{
    bool ours = env_number("LISTEN_PID") == (uint64_t)getpid();
    uint64_t n = ours ? env_number("LISTEN_FDS") : 0;
    int end = IVSHMEM2_LISTEN_FDS_START + (int)MIN(n, G_MAXINT / 2);

    ivshmem2_inherited_init_fds(in, NULL, 0);
    g_unsetenv("LISTEN_PID");
    g_unsetenv("LISTEN_FDS");
    g_unsetenv("LISTEN_FDNAMES");
    /* They have these numbers in a row, so the first gap is the end. */
    for (int fd = IVSHMEM2_LISTEN_FDS_START;
         fd < end && fcntl(fd, F_SETFD, FD_CLOEXEC) == 0; fd++) {
        sort_one(in, fd);
    }
}

bool ivshmem2_inherited_has_link(const Ivshmem2Inherited *in)
{
    return in->record_fd >= 0 || in->files->len || in->eventfds->len ||
           in->others->len;
}

bool ivshmem2_inherited_surplus(int fd, GError **error)
{
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
    g_autofree char *target = g_file_read_link(path, NULL);

    return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                         "descriptor %d that the service manager passed is "
                         "surplus, the server takes no %s", fd,
                         is_listening(fd) ? "second listening socket" :
                         target ? target : "such thing");
}

bool ivshmem2_inherited_check(const Ivshmem2Inherited *in, GError **error)
{
    return !in->others->len ||
           ivshmem2_inherited_surplus(g_array_index(in->others, int, 0),
                                      error);
}

static void dispose_all(GArray *fds)
{
    for (guint i = 0; i < fds->len; i++) {
        ivshmem2_dispose(&g_array_index(fds, int, i));
    }
    g_array_set_size(fds, 0);
}

void ivshmem2_inherited_discard(Ivshmem2Inherited *in)
{
    ivshmem2_dispose(&in->record_fd);
    dispose_all(in->files);
    dispose_all(in->eventfds);
    dispose_all(in->others);
}

void ivshmem2_inherited_clear(Ivshmem2Inherited *in)
{
    ivshmem2_inherited_discard(in);
    ivshmem2_dispose(&in->listen_fd);
    g_array_unref(in->files);
    g_array_unref(in->eventfds);
    g_array_unref(in->others);
}

/* What is kept */

struct Ivshmem2Store {
    int fd;                     /* -1: there is no manager */
    struct sockaddr_un addr;    /* len is 0 for the supervisor */
    socklen_t len;
    size_t room;
    bool started;
};

static bool open_supervisor(Ivshmem2Store *s, GError **error)
{
    int fd = env_number(IVSHMEM2_SUPERVISOR_ENV);

    if (socket_option(fd, SO_DOMAIN) != AF_UNIX ||
        socket_option(fd, SO_TYPE) != SOCK_SEQPACKET) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "the environment variable "
                             IVSHMEM2_SUPERVISOR_ENV " is for the server's "
                             "own supervisor only: unset it");
    }
    s->fd = fd;
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    s->room = env_number("FDSTORE");
    return true;
}

static bool open_manager(Ivshmem2Store *s, const char *path, GError **error)
{
    size_t len = strlen(path);

    if (len < 2 || len > sizeof(s->addr.sun_path)) {
        return true;
    }
    s->addr.sun_family = AF_UNIX;
    memcpy(s->addr.sun_path, path, len);
    if (path[0] == '@') {
        s->addr.sun_path[0] = 0;
    }
    s->len = offsetof(struct sockaddr_un, sun_path) + len;
    s->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (s->fd < 0) {
        return ivshmem2_fail_errno(error, "cannot create a socket");
    }
    s->room = MIN(env_number("FDSTORE"), MAX_NAMES);
    return true;
}

Ivshmem2Store *ivshmem2_store_open(GError **error)
{
    const struct timeval timeout = { .tv_sec = SEND_TIMEOUT };
    const char *path = g_getenv("NOTIFY_SOCKET");
    Ivshmem2Store *s = g_new0(Ivshmem2Store, 1);
    bool ok = true;

    s->fd = -1;
    if (g_getenv(IVSHMEM2_SUPERVISOR_ENV)) {
        ok = open_supervisor(s, error);
    } else if (path) {
        ok = open_manager(s, path, error);
    }
    if (!ok) {
        ivshmem2_store_close(s);
        return NULL;
    }
    if (s->fd >= 0) {
        setsockopt(s->fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
    }
    g_unsetenv(IVSHMEM2_SUPERVISOR_ENV);
    g_unsetenv("FDSTORE");
    return s;
}

void ivshmem2_store_close(Ivshmem2Store *s)
{
    if (s) {
        ivshmem2_close(&s->fd);
        g_free(s);
    }
}

size_t ivshmem2_store_room(const Ivshmem2Store *s)
{
    return s ? s->room : 0;
}

void ivshmem2_store_count(Ivshmem2Store *s, size_t n)
{
    if (s) {
        s->room -= MIN(n, s->room);
    }
}

void ivshmem2_store_started(Ivshmem2Store *s)
{
    if (s) {
        s->started = true;
    }
}

const char *ivshmem2_store_keeper(const Ivshmem2Store *s)
{
    return ivshmem2_store_is_supervisor(s) ? "the supervisor"
                                           : "the service manager";
}

bool ivshmem2_store_is_supervisor(const Ivshmem2Store *s)
{
    return s && s->fd >= 0 && !s->len;
}

static bool send_message(Ivshmem2Store *s, const char *text, const int *fds,
                         size_t n)
{
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(IVSHMEM2_STORE_FDS * sizeof(int))];
    } control = { 0 };
    struct iovec iov = {
        .iov_base = (char *)text,
        .iov_len = strlen(text),
    };
    struct msghdr msg = {
        .msg_name = s->len ? &s->addr : NULL,
        .msg_namelen = s->len,
        .msg_iov = &iov,
        .msg_iovlen = 1,
    };
    ssize_t ret;

    if (n) {
        struct cmsghdr *c;

        msg.msg_control = control.buf;
        msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
        c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n * sizeof(int));
        memcpy(CMSG_DATA(c), fds, n * sizeof(int));
    }
    do {
        ret = sendmsg(s->fd, &msg,
                      MSG_NOSIGNAL | (s->started ? MSG_DONTWAIT : 0));
    } while (ret < 0 && errno == EINTR);
    return ret >= 0;
}

size_t ivshmem2_store_put(Ivshmem2Store *s, const char *name, const int *fds,
                          size_t n)
{
    /* systemd would forget an eventfd whose counter is full. */
    g_autofree char *text = g_strdup_printf("FDSTORE=1\nFDNAME=%s\nFDPOLL=0",
                                            name);
    size_t done = 0;

    if (n > ivshmem2_store_room(s)) {
        errno = ENOSPC;
        return 0;
    }
    while (done < n) {
        size_t part = MIN(n - done, IVSHMEM2_STORE_FDS);

        if (!send_message(s, text, fds + done, part)) {
            break;
        }
        done += part;
        s->room -= part;
    }
    return done;
}

void ivshmem2_store_forget(Ivshmem2Store *s)
{
    static const char *const names[] = {
        IVSHMEM2_STORE_RECORD, IVSHMEM2_STORE_STATE_TABLE, IVSHMEM2_STORE_RW,
        IVSHMEM2_STORE_OUTPUTS, IVSHMEM2_STORE_EVENTFDS,
    };

    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *text = g_strdup_printf("FDSTOREREMOVE=1\nFDNAME=%s",
                                                names[i]);

        ivshmem2_store_notify(s, text);
    }
}

void ivshmem2_store_notify(Ivshmem2Store *s, const char *state)
{
    if (s && s->fd >= 0 && !send_message(s, state, NULL, 0)) {
        g_warning("cannot notify %s: %s", ivshmem2_store_keeper(s),
                  g_strerror(errno));
    }
}
