/*
 * libivshmem2: connecting to the server's socket
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include "libivshmem2-core.h"
#include "libivshmem2-peer.h"
#include "libivshmem2-util.h"

/* What to do about a connect() to @path that failed with @cause */
static const char *connect_hint(const char *path, int cause)
{
    struct stat st;

    switch (cause) {
    case ECONNREFUSED:
        /* it also means this; a name with @ is no file */
        if (path[0] != '@' && stat(path, &st) == 0 && !S_ISSOCK(st.st_mode)) {
            return ", it is not a socket";
        }
        return ", is ivshmem2-server running?";
    case ENOENT:
        return ", is ivshmem2-server running?";
    case EACCES:
        return "; the permissions of the socket and of the directories above "
               "it decide who may connect (see --socket-mode and "
               "--socket-group of ivshmem2-server)";
    default:
        return "";
    }
}

void ivshmem2_fail_connect(const char *path, int cause, GError **error)
{
    if (cause == EAGAIN) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_TIMEOUT,
                      "the server at '%s' does not accept in time, is it "
                      "stopped?", path);
    } else if (strlen(path) > IVSHMEM2_MAX_SOCKET_PATH) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                      "socket path '%s' is longer than the %zu bytes that the "
                      "system allows", path, IVSHMEM2_MAX_SOCKET_PATH);
    } else {
        ivshmem2_fail(error, IVSHMEM2_ERROR_IO, "cannot connect to '%s': %s%s",
                      path, g_strerror(cause), connect_hint(path, cause));
    }
}

int ivshmem2_connect(const char *path, int64_t deadline)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    socklen_t len = sizeof(addr);
    int left_ms = ivshmem2_deadline_ms(deadline);
    /* SO_SNDTIMEO 0 means no limit */
    struct timeval timeout = {
        .tv_sec = MAX(left_ms, 0) / 1000,
        .tv_usec = left_ms ? MAX(left_ms, 0) % 1000 * 1000 : 1,
    };
    int fd, ret, cause;

    if (strlen(path) > IVSHMEM2_MAX_SOCKET_PATH) {
        return -ENAMETOOLONG;
    }
    strcpy(addr.sun_path, path);
    if (path[0] == '@') {
        /* not a file, see unix(7); its length is the name's */
        addr.sun_path[0] = 0;
        len = offsetof(struct sockaddr_un, sun_path) + strlen(path);
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC |
                (deadline ? 0 : SOCK_NONBLOCK), 0);
    if (fd < 0) {
        return -errno;
    }
    /* connect() waits at most this long for a server to accept */
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
    do {
        ret = connect(fd, (struct sockaddr *)&addr, len);
    } while (ret < 0 && errno == EINTR);
    if (ret == 0) {
        return fd;
    }
    cause = errno;
    ivshmem2_close(&fd);
    return -cause;
}
