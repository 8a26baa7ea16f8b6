/*
 * Fuzzing ivshmem2: shared by the targets
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-fuzz.h"
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

/* More than a session keeps, so that its own limit is reached first */
#define MAX_FILES   2048

/* One more than the receiver has room for */
#define MAX_SEND_FDS (IVSHMEM2_MAX_FDS + 1)

const FuzzTarget fuzz_targets[] = {
    { "codec", fuzz_codec, 5000 },
    { "session", fuzz_session, 2500 },
    { "server", fuzz_server, 10000 },
    { "daemon", fuzz_daemon, 3000 },
    { "adopt", fuzz_adopt, 5000 },
    { NULL, NULL, 0 },
};

static int all_fds[FUZZ_N_FDS];

/* Messages about peers with errors would be too many. */
static void log_handler(const char *domain, GLogLevelFlags level,
                        const char *message, gpointer opaque)
{
    if (level & (G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL)) {
        g_printerr("%s\n", message);
        abort();
    }
}

void fuzz_init(void)
{
    g_autofree char *path = NULL;
    struct rlimit limit;
    int pipe_fds[2];

    g_log_set_always_fatal(G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL);
    g_log_set_default_handler(log_handler, NULL);
    g_assert_cmpint(getrlimit(RLIMIT_NOFILE, &limit), ==, 0);
    limit.rlim_cur = MIN(limit.rlim_max, MAX_FILES);
    g_assert_cmpint(setrlimit(RLIMIT_NOFILE, &limit), ==, 0);

    /* Inherited ones could have any number, see fuzz_count_fds(). */
    for (int fd = STDERR_FILENO + 1; fd < MAX_FILES; fd++) {
        close(fd);
    }
    g_assert_cmpint(pipe2(pipe_fds, O_CLOEXEC), ==, 0);
    close(pipe_fds[1]);
    all_fds[FUZZ_FD_EVENTFD] = make_eventfd();
    all_fds[FUZZ_FD_MEMORY] = make_memory(FUZZ_MEMORY_SIZE, MEMORY_SEALS);
    all_fds[FUZZ_FD_READ_ONLY] = reopen_read_only(all_fds[FUZZ_FD_MEMORY]);
    all_fds[FUZZ_FD_HUGE] = make_memory(2 * IVSHMEM2_MAX_SIZE, MEMORY_SEALS);
    all_fds[FUZZ_FD_UNSEALED] = make_memory(FUZZ_MEMORY_SIZE, 0);
    all_fds[FUZZ_FD_SOCKET] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    all_fds[FUZZ_FD_PIPE] = pipe_fds[0];
    all_fds[FUZZ_FD_FILE] = open("/", O_PATH | O_CLOEXEC);
    all_fds[FUZZ_FD_SMALL] = make_memory(4096, MEMORY_SEALS);
    all_fds[FUZZ_FD_EMPTY] = make_memory(0, MEMORY_SEALS);
    path = g_strdup_printf("/proc/self/fd/%d", all_fds[FUZZ_FD_MEMORY]);
    all_fds[FUZZ_FD_WRITE_ONLY] = open(path, O_WRONLY | O_CLOEXEC);
    for (int i = 0; i < FUZZ_N_FDS; i++) {
        g_assert_cmpint(all_fds[i], >=, 0);
    }
}

int fuzz_fd(FuzzFd kind)
{
    return all_fds[kind];
}

const FuzzTarget *fuzz_find_target(const char *name)
{
    const FuzzTarget *t = fuzz_targets;

    while (t->name && strcmp(t->name, name) != 0) {
        t++;
    }
    return t->name ? t : NULL;
}

void fuzz_run(const FuzzTarget *target, const uint8_t *data, size_t size)
{
    FuzzInput in = { .data = data, .size = MIN(size, FUZZ_MAX_INPUT) };
    unsigned before;

    fuzz_system_begin();
    before = fuzz_count_fds();
    target->run(&in);
    fuzz_system_end();
    g_assert_cmpuint(fuzz_count_fds(), ==, before);
}

size_t fuzz_bytes(FuzzInput *in, void *buf, size_t size)
{
    size_t n = MIN(size, in->size);

    if (n) {
        memcpy(buf, in->data, n);
        in->data += n;
        in->size -= n;
    }
    return n;
}

uint8_t fuzz_u8(FuzzInput *in)
{
    uint8_t v = 0;

    fuzz_bytes(in, &v, sizeof(v));
    return v;
}

uint32_t fuzz_u32(FuzzInput *in)
{
    uint32_t v = 0;

    fuzz_bytes(in, &v, sizeof(v));
    return GUINT32_FROM_LE(v);
}

unsigned fuzz_count_fds(void)
{
    unsigned total = 0;
    unsigned here;
    int first = 0;

    fuzz_settle();
    total -= fuzz_count_tracked();
    /*
     * The system uses the lowest free number, so there are no more open ones
     * after so many that are free.
     */
    do {
        struct pollfd some[64];

        for (size_t i = 0; i < G_N_ELEMENTS(some); i++) {
            some[i] = (struct pollfd) { .fd = first++ };
        }
        g_assert_cmpint(poll(some, G_N_ELEMENTS(some), 0), >=, 0);
        here = 0;
        for (size_t i = 0; i < G_N_ELEMENTS(some); i++) {
            here += !(some[i].revents & POLLNVAL);
        }
        total += here;
    } while (here);
    return total;
}

/* Sending */

static void send_now(FuzzEnd *end, const void *buf, size_t len,
                     const int *fds, size_t n_fds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * MAX_SEND_FDS)];
    } space = { .bytes = { 0 } };
    struct iovec iov = { .iov_base = (void *)buf, .iov_len = len };
    struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

    if (!len || end->fd < 0) {
        return;
    }
    if (n_fds) {
        mh.msg_control = &space;
        mh.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        CMSG_FIRSTHDR(&mh)->cmsg_level = SOL_SOCKET;
        CMSG_FIRSTHDR(&mh)->cmsg_type = SCM_RIGHTS;
        CMSG_FIRSTHDR(&mh)->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&mh)), fds, n_fds * sizeof(int));
    }
    /* The socket may take all of it, a part or nothing. */
    sendmsg(end->fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Descriptors that the sender closes */
typedef struct NewFds {
    unsigned len;
    int fds[MAX_SEND_FDS];
} NewFds;

static int choose_fd(FuzzFd kind, NewFds *new_fds)
{
    int fd = -1;

    if (kind == FUZZ_FD_TRACKED) {
        fd = fuzz_make_tracked();
        kind = FUZZ_FD_PIPE;
    }
    if (fd < 0) {
        return all_fds[kind];
    }
    new_fds->fds[new_fds->len++] = fd;
    return fd;
}

/* Bits of the first byte: what to change */
enum {
    LIE_BYTE    = 1 << 0,
    LIE_FDS     = 1 << 1,
    LIE_CUT     = 1 << 2,
};

void fuzz_send(FuzzInput *in, FuzzEnd *end, const Ivshmem2Msg *msg,
               const int *fds)
{
    Ivshmem2Msg wire = *msg;
    uint8_t *bytes = (uint8_t *)&wire;
    size_t n_fds = msg->hdr.fds;
    size_t len = ivshmem2_msg_encode(&wire);
    uint8_t lie = fuzz_u8(in);
    int send_fds[MAX_SEND_FDS];
    NewFds new_fds = { .len = 0 };

    for (size_t i = 0; i < n_fds; i++) {
        send_fds[i] = fds[i];
    }
    if (lie & LIE_BYTE) {
        uint8_t at = fuzz_u8(in);

        bytes[at % len] ^= fuzz_u8(in);
    }
    if (lie & LIE_FDS) {
        n_fds = fuzz_u8(in) % (MAX_SEND_FDS + 1);
        for (size_t i = 0; i < n_fds; i++) {
            uint8_t kind = fuzz_u8(in);

            send_fds[i] = i < msg->hdr.fds && kind >= FUZZ_N_KINDS ?
                          fds[i] : choose_fd(kind % FUZZ_N_KINDS, &new_fds);
        }
    }
    end->n_rest = 0;
    if (lie & LIE_CUT) {
        size_t cut = fuzz_u8(in) % len;

        end->n_rest = len - cut;
        memcpy(end->rest, bytes + cut, end->n_rest);
        len = cut;
    }
    send_now(end, bytes, len, send_fds, n_fds);
    for (unsigned i = 0; i < new_fds.len; i++) {
        close(new_fds.fds[i]);
    }
}

void fuzz_send_rest(FuzzEnd *end)
{
    send_now(end, end->rest, end->n_rest, NULL, 0);
    end->n_rest = 0;
}

void fuzz_send_bytes(FuzzInput *in, FuzzEnd *end)
{
    uint8_t buf[64];
    size_t len = fuzz_bytes(in, buf, 1 + fuzz_u8(in) % sizeof(buf));

    send_now(end, buf, len, NULL, 0);
}

Ivshmem2Msg fuzz_hello(FuzzInput *in, uint8_t how,
                       const Ivshmem2Welcome *welcome)
{
    Ivshmem2Msg msg = {
        .hdr.type = IVSHMEM2_MSG_HELLO,
        .hello = {
            .magic = IVSHMEM2_MAGIC,
            .version_min = IVSHMEM2_VERSION_MIN,
            .version_max = IVSHMEM2_VERSION_MAX,
            .features = IVSHMEM2_F_INTERRUPTS,
            .vectors = IVSHMEM2_MAX_VECTORS,
            .id = how & 1 ? fuzz_u8(in) : IVSHMEM2_ID_ANY,
        },
    };

    if (how & 2) {
        memcpy(msg.hello.session, welcome->session,
               sizeof(msg.hello.session));
    }
    return msg;
}
