/*
 * The socket at which clients find the server
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "libivshmem2-core.h"
#include "libivshmem2-util.h"
#include "listen.h"

/* Other servers hold the lock only for some system calls. */
#define LOCK_TRIES          40
#define LOCK_INTERVAL       (G_USEC_PER_SEC / 100)

/*
 * Makes one of two servers that start at once find the other.  The lock is on
 * the directory, so that it leaves no file behind.  Everybody who can read the
 * directory can have this lock, so the server starts without it, too.
 */
static int lock_directory(const char *path, GError **error)
{
    g_autofree char *dir = g_path_get_dirname(path);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0) {
        ivshmem2_fail_errno(error, "cannot open the directory %s", dir);
        return -1;
    }
    for (int i = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; i++) {
        if (errno != EWOULDBLOCK || i == LOCK_TRIES) {
            g_warning("another process keeps the directory %s locked (see "
                      "lslocks), so two servers that start now may not notice "
                      "each other: %s", dir, g_strerror(errno));
            break;
        }
        g_usleep(LOCK_INTERVAL);
    }
    return fd;
}

/* Closing the directory unlocks it. */
static void unlock_directory(int *fd)
{
    ivshmem2_close(fd);
}

/* A name that begins with @ is no file (see unix(7)). */
static bool is_abstract(const char *path)
{
    return path[0] == '@';
}

static bool set_address(struct sockaddr_un *addr, const char *path,
                        GError **error)
{
    size_t max = sizeof(addr->sun_path) - 1;

    if (!*path || strlen(path) > max) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "a socket's path has 1 to %zu bytes, '%s' has %zu",
                             max, path, strlen(path));
    }
    memset(addr, 0, sizeof(*addr));
    addr->sun_family = AF_UNIX;
    memcpy(addr->sun_path, path, strlen(path));
    return true;
}

/* Remove the socket of a dead server.  Fails if anything else is there. */
static bool remove_stale(const struct sockaddr_un *addr, GError **error)
{
    const char *path = addr->sun_path;
    struct stat st;
    int fd, ret;

    if (lstat(path, &st) < 0) {
        return errno == ENOENT ||
               ivshmem2_fail_errno(error, "cannot look at %s", path);
    }
    if (!S_ISSOCK(st.st_mode)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "%s exists and is not a socket", path);
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return ivshmem2_fail_errno(error, "cannot create a socket");
    }
    ret = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0
          ? errno : 0;
    ivshmem2_close(&fd);
    if (ret == 0 || ret == EAGAIN) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "another server is listening at %s", path);
    }
    if (ret != ECONNREFUSED) {
        errno = ret;
        return ivshmem2_fail_errno(error, "cannot tell whether the socket %s "
                                   "is in use", path);
    }
    g_info("replacing the socket %s, nobody listens there", path);
    if (unlink(path) < 0 && errno != ENOENT) {
        return ivshmem2_fail_errno(error, "cannot remove the stale socket %s",
                                   path);
    }
    return true;
}

/* Before anybody can connect; the group first, as the mode is for it. */
static bool set_group(const char *path, mode_t mode, gid_t gid,
                      GError **error)
{
    if (lchown(path, -1, gid) < 0) {
        return ivshmem2_fail_errno(error, "cannot give the socket %s to group "
                                   "%u", path, gid);
    }
    if (fchmodat(AT_FDCWD, path, mode, AT_SYMLINK_NOFOLLOW) < 0) {
        return ivshmem2_fail_errno(error, "cannot set the mode of %s", path);
    }
    return true;
}

static bool bind_and_listen(int fd, const struct sockaddr_un *addr,
                            mode_t mode, gid_t gid, GError **error)
{
    const char *path = addr->sun_path;
    bool has_group = gid != (gid_t)-1;
    mode_t mask = umask(has_group ? 0777 : 0);
    int ret;

    /* the file gets the mode of the socket */
    fchmod(fd, mode);
    ret = bind(fd, (const struct sockaddr *)addr, sizeof(*addr));
    umask(mask);
    if (ret < 0) {
        return ivshmem2_fail_errno(error, "cannot create the socket %s", path);
    }
    if (has_group && !set_group(path, mode, gid, error)) {
        unlink(path);
        return false;
    }
    if (listen(fd, SOMAXCONN) < 0) {
        ivshmem2_fail_errno(error, "cannot listen at %s", path);
        unlink(path);
        return false;
    }
    return true;
}

static bool make_socket(Ivshmem2Listener *l, const struct sockaddr_un *addr,
                        mode_t mode, gid_t gid, GError **error)
{
    const char *path = addr->sun_path;

    if (!remove_stale(addr, error)) {
        return false;
    }
    l->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (l->fd < 0) {
        return ivshmem2_fail_errno(error, "cannot create a socket");
    }
    if (!bind_and_listen(l->fd, addr, mode, gid, error)) {
        return false;
    }
    ivshmem2_listen_own_file(l, path);
    return true;
}

static bool make_abstract_socket(Ivshmem2Listener *l, struct sockaddr_un *addr,
                                 const char *path, GError **error)
{
    socklen_t len = offsetof(struct sockaddr_un, sun_path) + strlen(path);

    addr->sun_path[0] = 0;
    l->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (l->fd < 0) {
        return ivshmem2_fail_errno(error, "cannot create a socket");
    }
    if (bind(l->fd, (struct sockaddr *)addr, len) < 0 ||
        listen(l->fd, SOMAXCONN) < 0) {
        return errno == EADDRINUSE
               ? ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                               "another process uses the socket name %s", path)
               : ivshmem2_fail_errno(error, "cannot listen at %s", path);
    }
    return true;
}

/* The caller has locked the directory if that is possible. */
static void close_listener(Ivshmem2Listener *l)
{
    struct stat st;

    if (l->path && !l->kept && lstat(l->path, &st) == 0 &&
        st.st_dev == l->dev && st.st_ino == l->ino) {
        unlink(l->path);
    }
    g_clear_pointer(&l->path, g_free);
    ivshmem2_close(&l->fd);
}

bool ivshmem2_listen(Ivshmem2Listener *l, const char *path, mode_t mode,
                     gid_t gid, GError **error)
{
    struct sockaddr_un addr;
    int lock = -1;
    bool ok;

    *l = (Ivshmem2Listener) { .fd = -1 };
    if (!set_address(&addr, path, error)) {
        return false;
    }
    if (is_abstract(path)) {
        ok = make_abstract_socket(l, &addr, path, error);
    } else {
        lock = lock_directory(path, error);
        if (lock < 0) {
            return false;
        }
        ok = make_socket(l, &addr, mode, gid, error);
    }
    if (!ok) {
        close_listener(l);
    }
    unlock_directory(&lock);
    return ok;
}

void ivshmem2_listen_end(Ivshmem2Listener *l)
{
    int lock = l->path ? lock_directory(l->path, NULL) : -1;

    close_listener(l);
    unlock_directory(&lock);
}

static char *bound_path(int fd)
{
    struct sockaddr_un addr = { 0 };
    socklen_t len = sizeof(addr);
    size_t n;

    if (getsockname(fd, (struct sockaddr *)&addr, &len) < 0 ||
        len <= offsetof(struct sockaddr_un, sun_path)) {
        return g_strdup("");
    }
    n = len - offsetof(struct sockaddr_un, sun_path);
    if (!addr.sun_path[0]) {
        addr.sun_path[0] = '@';
    }
    return g_strndup(addr.sun_path, MIN(n, sizeof(addr.sun_path)));
}

bool ivshmem2_listen_inherited(Ivshmem2Listener *l, int fd, const char *path,
                               GError **error)
{
    g_autofree char *bound = bound_path(fd);

    *l = (Ivshmem2Listener) { .fd = -1 };
    if (path && strcmp(path, bound)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "--socket '%s' is not possible: the service "
                             "manager passed a socket already, at '%s', where "
                             "peers look for the server", path, bound);
    }
    l->fd = fd;
    return true;
}

void ivshmem2_listen_own_file(Ivshmem2Listener *l, const char *path)
{
    struct stat st;

    if (!is_abstract(path) && lstat(path, &st) == 0 && S_ISSOCK(st.st_mode)) {
        g_free(l->path);
        l->path = g_strdup(path);
        l->dev = st.st_dev;
        l->ino = st.st_ino;
    }
}
