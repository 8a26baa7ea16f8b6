/*
 * ivshmem2-client: the command line, with the real server
 *
 * The programs are those of IVSHMEM2_SERVER and IVSHMEM2_CLIENT.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-client-util.h"
#include <sys/stat.h>

static void test_cli_usage(void)
{
    static const char *const wrong[][2] = {
        { "", "say which command" },
        { "fly", "there is no command 'fly'" },
        { "info", "one of --socket and --pci" },
        { "--pci 0:4.0 --socket x info", "one of --socket and --pci" },
        { "--pci 0:4.0 --id 3 info", "--id and --name go with --socket" },
        { "--socket x --id 65536 info",
          "--id '65536' is not valid, it must be a number from 0 to 65535" },
        { "--socket x --id -- info",
          "--id '--' is not valid, it must be a number" },
        { "--socket x --state 4294967296 info",
          "--state '4294967296' is not valid, it must be a number from 0 to "
          "4294967295" },
        { "--socket x --vector 2048 wait", "from 0 to 2047" },
        { "--socket x --timeout soon wait", "--timeout 'soon'" },
        { "--socket x --count 0 wait", "--count '0'" },
        { "--socket x --count 0x wait", "--count '0x'" },
        { "--socket x ring", "'ring' takes arguments ID [VECTOR]" },
        { "--socket x info again", "'info' takes no arguments" },
        { "--rabbit info", "--rabbit" },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_auto(Run) r = run_client("", wrong[i][0]);

        if (r.status != 2 || !strstr(r.err, wrong[i][1]) || r.out[0]) {
            g_error("'%s': status %d, '%s', '%s'", wrong[i][0], r.status,
                    r.out, r.err);
        }
    }
    {
        g_auto(Run) r = run_client("", "--help");

        g_assert_cmpint(r.status, ==, 0);
        g_assert_nonnull(strstr(r.out, "ring ID [VECTOR]"));
    }
    {
        g_auto(Run) r = run_client("", "--version");

        g_assert_cmpint(r.status, ==, 0);
        g_assert_true(g_str_has_prefix(r.out, "ivshmem2-client 1."));
        g_assert_nonnull(strstr(r.out, "protocol versions "));
    }
    {
        g_auto(Run) r = run_client("", "--socket /nonexistent/socket info");

        g_assert_cmpint(r.status, ==, 1);
        g_assert_nonnull(strstr(r.err, "is ivshmem2-server running?"));
    }
    {
        g_auto(Run) r = run_client("", "--pci 7fff:ff:1f.7 info");

        g_assert_cmpint(r.status, ==, 1);
        g_assert_nonnull(strstr(r.err, "there is no PCI device"));
    }
}

/* Bytes of memory that the sections take, which the server holds open */
static uint64_t allocated(Server *l)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fd", l->pid);
    GDir *dir = g_dir_open(path, 0, NULL);
    uint64_t sum = 0;
    const char *name;

    while ((name = g_dir_read_name(dir))) {
        g_autofree char *file = g_build_filename(path, name, NULL);
        g_autofree char *target = g_file_read_link(file, NULL);
        struct stat st;

        if (target && g_str_has_prefix(target, "/memfd:")) {
            g_assert_cmpint(stat(file, &st), ==, 0);
            sum += st.st_blocks * 512;
        }
    }
    g_dir_close(dir);
    return sum;
}

/* A client that reads all of a section, 64 MiB with "Hello" in the middle */
static void assert_read(char **argv, GSpawnChildSetupFunc child, void *opaque)
{
    const size_t size = 64 << 20;
    const size_t at = size / 2 + 5;
    g_autofree char *zeros = g_malloc0(size);
    g_autofree char *data = g_malloc(size);
    g_autoptr(GError) error = NULL;
    size_t got = 0;
    ssize_t len;
    GPid pid;
    int out;

    g_spawn_async_with_pipes(NULL, argv, NULL, G_SPAWN_DO_NOT_REAP_CHILD,
                             child, opaque, &pid, NULL, &out, NULL, &error);
    g_assert_no_error(error);
    while ((len = read(out, data + got, size - got)) > 0) {
        got += len;
    }
    g_assert_cmpuint(got, ==, size);
    g_assert_cmpmem(data, at, zeros, at);
    g_assert_cmpmem(data + at, 5, "Hello", 5);
    g_assert_cmpmem(data + at + 5, size - at - 5, zeros, size - at - 5);
    assert_end(pid, out, 0, "");
}

static char **read_argv(const char *socket)
{
    g_autofree char *line = g_strdup_printf(
        "%s --socket %s read rw 0 67108864", g_getenv("IVSHMEM2_CLIENT"),
        socket);

    return g_strsplit(line, " ", -1);
}

/* Reading memory that nobody has written does not allocate it. */
static void test_cli_read_untouched(void)
{
    g_auto(GStrv) argv = NULL;
    Server l;

    link_start(&l, "--max-peers 3 --rw-size 64M --output-size 64M");
    assert_run(&l, "write rw 33554437 Hello", 0, "wrote 5 bytes", "");
    argv = read_argv(l.socket);
    assert_read(argv, end_with_parent, NULL);
    assert_run(&l, "dump rw 33550336 1048576", 0, "|.....Hello......|", "");
    assert_run(&l, "--json dump rw 33554400 1048576", 0, "48656c6c6f", "");
    assert_run(&l, "dump output:2 0 1048576", 0, "000ffff0  00 ", "");
    g_assert_cmpuint(allocated(&l), >, 0);
    g_assert_cmpuint(allocated(&l), <, 1 << 20);
    link_end(&l);
}

/* The same by a user who does not own the memory's files */
static void test_cli_read_untouched_other_user(void)
{
    g_auto(GStrv) argv = read_argv("link.sock");
    Limited user = { .files = 1024, .argv = argv };
    Server l;

    if (geteuid()) {
        g_test_skip("needs root, to run a client as another user");
        return;
    }
    link_start(&l, "--max-peers 3 --rw-size 64M --socket-mode 666");
    user.server = &l;
    g_assert_cmpint(chmod(l.dir, 0711), ==, 0);
    assert_run(&l, "write rw 33554437 Hello", 0, "wrote 5 bytes", "");
    assert_read(argv, run_limited, &user);
    g_assert_cmpuint(allocated(&l), <, 1 << 20);
    link_end(&l);
}

#define FAKE_DEVICES    "/sys/bus/pci/devices"

/*
 * What the client says of a device in @group ("": in none) that has @driver
 * ("": none), in a mount namespace with a /sys of its own
 */
static void assert_unusable(const char *group, const char *driver,
                            const char *words, const char *others)
{
    g_autofree char *script = g_strdup_printf(
        "mount -t tmpfs none " FAKE_DEVICES " && cd " FAKE_DEVICES " && "
        "mkdir 0000:00:04.0 && cd 0000:00:04.0 && "
        "echo 0x110a > vendor && echo 0x4106 > device && "
        "if [ -n '%s' ]; then ln -s '%s' iommu_group; fi && "
        "if [ -n '%s' ]; then ln -s '%s' driver; fi && "
        "exec '%s' --pci 00:04.0 info", group, group, driver, driver,
        g_getenv("IVSHMEM2_CLIENT"));
    const char *argv[] = { "unshare", "-rm", "sh", "-c", script, NULL };
    g_autofree char *out = NULL;
    g_autofree char *err = NULL;
    int status;

    g_assert_true(g_spawn_sync(NULL, (char **)argv, NULL,
                               G_SPAWN_SEARCH_PATH, end_with_parent, NULL,
                               &out, &err, &status, NULL));
    g_assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) != 1 || !strstr(err, words) ||
        strstr(err, others)) {
        g_error("status %d, '%s'", WEXITSTATUS(status), err);
    }
}

/* In a guest: no advice that cannot work there */
static void test_cli_no_iommu(void)
{
    int status;

    if (!g_spawn_command_line_sync("unshare -rm mount -t tmpfs none "
                                   FAKE_DEVICES, NULL, NULL, &status, NULL) ||
        status) {
        g_test_skip("cannot mount in a namespace of its own");
        return;
    }
    assert_unusable("", "", "needs an IOMMU", "driver_override");
    assert_unusable("/sys/kernel/iommu_groups/7", "", "driver_override",
                    "needs an IOMMU");
    /* as with vfio's enable_unsafe_noiommu_mode */
    assert_unusable("/sys/kernel/iommu_groups/65535",
                    "/sys/bus/pci/drivers/vfio-pci",
                    "No such file or directory, does the virtual machine have "
                    "an IOMMU?", "driver_override");
}

/* What a user may not do, and how to change that */
static void test_cli_permissions(void)
{
    g_autofree char *rules = NULL;
    g_autofree char *options = NULL;
    g_autofree char *text = NULL;
    char program[PATH_MAX];
    char *argv[] = { program, (char *)"--socket", (char *)"link.sock",
                     (char *)"info", NULL };
    Limited user = { .files = 1024, .argv = argv };
    Server l;

    if (geteuid()) {
        g_test_skip("needs root, to run a client as another user");
        return;
    }
    g_strlcpy(program, g_getenv("IVSHMEM2_CLIENT"), sizeof(program));
    user.server = &l;
    link_start(&l, "--max-peers 3 --socket-mode 600");
    g_assert_cmpint(chmod(l.dir, 0711), ==, 0);
    text = server_fail_with(argv, run_limited, &user);
    assert_says_text(text, "'link.sock': Permission denied");
    assert_says_text(text, "--socket-mode");
    link_end(&l);

    server_init(&l);
    rules = g_build_filename(l.dir, "access", NULL);
    g_assert_true(g_file_set_contents(rules, "[root]\nusers = 0\nids = 1\n",
                                      -1, NULL));
    options = g_strdup_printf("--max-peers 3 --socket-mode 666 --access %s",
                              rules);
    server_start(&l, options);
    g_assert_cmpint(chmod(l.dir, 0711), ==, 0);
    assert_run(&l, "--id 2 info", 1, "",
               "the server says: the user with uid 0 may not take ID 2");
    g_free(text);
    text = server_fail_with(argv, run_limited, &user);
    assert_says_text(text, "may not connect");
    g_unlink(rules);
    link_end(&l);
}

static void test_cli_commands(void)
{
    Server l;
    Ivshmem2Peer *a;

    link_start(&l, "--max-peers 4 --vectors 2 --rw-size 4K --output-size 4K");
    a = join(&l, 1);
    set_state(a, 9);
    assert_run(&l, "--id 2 info", 0, "ID:              2\n", "");
    assert_run(&l, "--state 4 peers", 0, "peer 1: state 9\n", "");
    assert_run(&l, "--id 2 --state 0x10 state", 0, "state 16\n", "");
    assert_run(&l, "--id 1 info", 1, "", "the server says: ");

    ivshmem2_peer_wait(a, -1, NULL, 0, NULL);
    assert_run(&l, "ring 1 1", 0, "rang vector 1 of peer 1\n", "");
    assert_interrupt(a, 1, 1);
    assert_run(&l, "--json ring 1 1", 0, "\"state\": 9}\n", "");
    assert_run(&l, "--id 2 ring 2", 0, "rang vector 0 of peer 2\n", "");
    assert_run(&l, "--id 2 ring 3 1", 0, "rang vector 1 of peer 3, which is "
               "absent or has not set a state: its state is 0\n", "");
    assert_run(&l, "--id 2 --json ring 3 1", 0, "\"state\": 0}\n", "");
    assert_run(&l, "ring 4", 2, "",
               "ID '4' is not valid, it must be a number from 0 to 3");
    assert_run(&l, "ring 1 2", 2, "",
               "VECTOR '2' is not valid, it must be a number from 0 to");
    assert_run(&l, "--vector 2 wait", 2, "", "--vector '2'");
    assert_run(&l, "--timeout 0.1 wait", 3, "", "--timeout is over");
    assert_run(&l, "--timeout 0.1 --count 1 pong", 3, "0 answers",
               "--timeout is over");
    assert_run(&l, "--timeout 0.1 --count 1 watch", 3, "peer 1: state 9",
               "--timeout is over");
    assert_run(&l, "--timeout 0.1 watch", 0, "peer 1: state 9, was 0\n", "");

    assert_run(&l, "write rw 16 'hello there'", 0, "wrote 11 bytes", "");
    assert_run(&l, "read rw 0x10 5", 0, "hello", "");
    assert_run(&l, "dump rw 16 16", 0, "00000010  68 65 6c 6c 6f 20 74 68  65 "
               "72 65 00 00 00 00 00  |hello there.....|\n", "");
    assert_run(&l, "dump state", 0, "00000000  00 00 00 00 09 00 00 00 ", "");
    assert_run(&l, "--id 2 write output 0 mine", 0, "wrote 4 bytes", "");
    g_assert_cmpstr(ivshmem2_peer_output(a, 2), ==, "mine");
    assert_run(&l, "write output:1 0 theirs", 1, "", "may only read it");
    g_assert_cmpstr(ivshmem2_peer_output(a, 1), ==, "");
    assert_run(&l, "write state 0 1", 1, "", "may only read it");
    assert_run(&l, "write rw 4096 x", 1, "", "do not fit");
    assert_run(&l, "write rw 4097 x", 2, "", "OFFSET '4097'");
    assert_run(&l, "read rw 1 4096", 2, "",
               "LENGTH '4096' is not valid, it must be a number from 0 to "
               "4095");
    assert_run(&l, "read output:4 0 1", 2, "", "ID in SECTION '4'");
    assert_run(&l, "read other 0 1", 2, "", "SECTION 'other'");
    ivshmem2_peer_close(a);
    link_end(&l);

    link_start(&l, "--max-peers 2 --rw-size 0 --output-size 0");
    assert_run(&l, "read rw 0 0", 1, "", "no R/W section");
    assert_run(&l, "read output 0 0", 1, "", "no output section");
    assert_run(&l, "pong", 1, "", "need");
    link_end(&l);
}

static void test_cli_stdin(void)
{
    Server l;
    g_autofree char *big = g_strnfill(200000, 'b');
    g_autofree char *args = NULL;
    Ivshmem2Peer *a;

    link_start(&l, "--max-peers 2 --rw-size 256K");
    a = join(&l, 0);
    args = g_strdup_printf("--socket %s write rw 100", l.socket);
    {
        g_auto(Run) r = run_client(big, args);

        g_assert_cmpint(r.status, ==, 0);
        g_assert_cmpstr(r.out, ==, "wrote 200000 bytes\n");
    }
    g_assert_cmpstr((char *)ivshmem2_peer_rw(a) + 100, ==, big);
    ivshmem2_peer_close(a);
    link_end(&l);
}

/* A checker for one JSON object without nesting, as the program prints it */
static const char *skip_string(const char *p)
{
    g_assert_cmpint(*p++, ==, '"');
    while (*p != '"') {
        g_assert_cmpint((unsigned char)*p, >=, 0x20);
        if (*p++ == '\\') {
            g_assert_nonnull(strchr("\"\\/bfnrtu", *p));
            p++;
        }
    }
    return p + 1;
}

static const char *skip_value(const char *p)
{
    char *end;

    if (*p == '"') {
        return skip_string(p);
    }
    if (g_str_has_prefix(p, "true")) {
        return p + 4;
    }
    if (g_str_has_prefix(p, "false")) {
        return p + 5;
    }
    g_assert_true(g_ascii_isdigit(*p));
    g_ascii_strtod(p, &end);
    return end;
}

static void assert_json(const char *text)
{
    const char *p = text;

    g_assert_cmpint(*p++, ==, '{');
    while (*p != '}') {
        p = skip_string(p);
        g_assert_true(g_str_has_prefix(p, ": "));
        p = skip_value(p + 2);
        if (*p == ',') {
            g_assert_cmpint(p[1], ==, ' ');
            g_assert_cmpint(p[2], ==, '"');
            p += 2;
        } else {
            g_assert_cmpint(*p, ==, '}');
        }
    }
    g_assert_cmpint(p[1], ==, 0);
}

/* All commands as one peer, with each line of output checked as JSON */
static void test_cli_shell(void)
{
    static const char script[] =
        "# what a program would send\n"
        "info\n\npeers\nring 0 1\nring 9\nstate 5\nstate\n"
        "wait --vector 1 --timeout 0\nwrite output 0 \"a \\\"b\\\\\"\n"
        "read output 0 6\ndump output 0 16\nwrite output:1 0 x\n"
        "watch --timeout 0.1\nwrite output 0\nshell\n\"fl\001y\"\n"
        "ping 1 --timeout 0.1\npong --timeout 0.1\nring 1 --count 5";
    static const char *const expected[] = {
        "\"id\": 0, \"max_peers\": 4", "\"ok\"",
        "\"self\": true", "\"ok\"",
        "\"target\": 0, \"vector\": 1", "\"ok\"",
        "\"error\", \"text\": \"ID '9' is not valid, it must be a number "
        "from 0 to 3\"",
        "{\"id\": 0, \"state\": 5}", "\"ok\"",
        "{\"id\": 0, \"state\": 5}", "\"ok\"",
        "{\"event\": \"interrupt\", \"vector\": 1}", "\"ok\"",
        "\"length\": 5", "\"ok\"",
        "\"hex\": \"612022625c00\"", "\"ok\"",
        "\"section\": \"output\", \"offset\": 0, \"length\": 16", "\"ok\"",
        "may only read it",
        "\"event\": \"state\", \"id\": 0, \"old\": 0, \"state\": 5", "\"ok\"",
        "write needs DATA", "this is the shell", "fl\\u0001y",
        "\"timeout\", \"text\": \"peer 1 does not answer",
        "\"answers\": 0", "\"ok\"",
    };
    g_autofree char *args = NULL;
    g_auto(GStrv) lines = NULL;
    Server l;

    link_start(&l, "--max-peers 4 --vectors 2 --rw-size 4K --output-size 4K");
    args = g_strdup_printf("--socket %s --id 0 --json shell", l.socket);
    {
        g_auto(Run) r = run_client(script, args);

        g_assert_cmpint(r.status, ==, 0);
        g_assert_cmpstr(r.err, ==, "");
        lines = g_strsplit(r.out, "\n", -1);
    }
    for (size_t i = 0; lines[i] && lines[i][0]; i++) {
        assert_json(lines[i]);
        if (i >= G_N_ELEMENTS(expected) || !strstr(lines[i], expected[i])) {
            g_error("line %zu is '%s'", i, lines[i]);
        }
    }
    /* the last line has no newline and is no command */
    g_assert_cmpuint(g_strv_length(lines), ==, G_N_ELEMENTS(expected) + 1);
    link_end(&l);
}

static void test_cli_protocols(void)
{
    static const char *const names[][2] = {
        { "0", "0x0000 (undefined)" },
        { "1", "0x0001 (network)" },
        { "0x3fff", "0x3fff (reserved)" },
        { "0x4000", "0x4000 (user-defined)" },
        { "0x8003 --backend-id 1", "0x8003 (virtio, front-end)" },
        { "0x8003 --backend-id 0", "0xc003 (virtio, back-end)" },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *options =
            g_strdup_printf("--max-peers 2 --protocol %s", names[i][0]);
        Server l;

        link_start(&l, options);
        assert_run(&l, "--id 0 info", 0, names[i][1], "");
        link_end(&l);
    }
}

/* Invalid arguments and files */
static void test_cli_bad_arguments(void)
{
    Server l;
    g_autofree char *full = NULL;
    g_autofree char *out = NULL;
    g_autofree char *err = NULL;
    int status;

    link_start(&l, "--max-peers 3 --vectors 2 --rw-size 4K --output-size 4K");
    assert_run(&l, "dump other", 2, "", "SECTION 'other'");
    assert_run(&l, "dump rw x", 2, "", "OFFSET 'x'");
    assert_run(&l, "dump rw 0 4097", 2, "", "LENGTH '4097'");
    assert_run(&l, "dump rw 0 3", 0, "00 00 00     ", "");
    assert_run(&l, "write other 0 x", 2, "", "SECTION 'other'");
    assert_run(&l, "state x", 2, "", "VALUE 'x'");
    assert_run(&l, "ping 3", 2, "", "ID '3'");
    assert_run(&l, "--id 1 ping 1", 1, "", "ID 1 is this peer itself");
    assert_run(&l, "--vector 2 ping 1", 2, "", "--vector '2'");
    assert_run(&l, "--json --timeout 0.01 wait", 3, "", "");

    full = g_strdup_printf("sh -c '%s --socket %s read rw 0 4096 > /dev/full'",
                           g_getenv("IVSHMEM2_CLIENT"), l.socket);
    g_assert_true(g_spawn_command_line_sync(full, &out, &err, &status, NULL));
    g_assert_cmpint(WEXITSTATUS(status), ==, 1);
    g_assert_nonnull(strstr(err, "cannot write to standard output: "));
    link_end(&l);
}

static const ClientTest tests[] = {
    { "/ivshmem2/cli/usage", test_cli_usage },
    { "/ivshmem2/cli/commands", test_cli_commands },
    { "/ivshmem2/cli/permissions", test_cli_permissions },
    { "/ivshmem2/cli/no-iommu", test_cli_no_iommu },
    { "/ivshmem2/cli/read-untouched", test_cli_read_untouched },
    { "/ivshmem2/cli/read-untouched-other-user",
      test_cli_read_untouched_other_user },
    { "/ivshmem2/cli/stdin", test_cli_stdin },
    { "/ivshmem2/cli/shell", test_cli_shell },
    { "/ivshmem2/cli/protocols", test_cli_protocols },
    { "/ivshmem2/cli/bad-arguments", test_cli_bad_arguments },
};

int main(int argc, char **argv)
{
    return client_tests_run(argc, argv, tests, G_N_ELEMENTS(tests));
}
