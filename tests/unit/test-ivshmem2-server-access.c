/*
 * ivshmem2-server: access rules and groups
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-raw-client.h"
#include <limits.h>
#include <sys/stat.h>
#include "access.h"
#include "process.h"

/* The rules, without a server */

static Ivshmem2Access *load_rules(const char *text, GError **error)
{
    g_autofree char *path = NULL;
    int fd = g_file_open_tmp("ivshmem2-XXXXXX", &path, NULL);
    Ivshmem2Access *a;

    g_assert_cmpint(fd, >=, 0);
    ivshmem2_close(&fd);
    g_assert_true(g_file_set_contents(path, text, -1, NULL));
    a = ivshmem2_access_load(path, 100, error);
    g_unlink(path);
    return a;
}

static void test_rules(void)
{
    static const struct {
        uid_t uid;
        gid_t gids[2];
        const char *ids;        /* NULL: may not connect */
    } cases[] = {
        { 1000, { 1, 2 }, "7, 3-5" },
        { 1001, { 1, 2 }, "7, 3-5" },
        { 1002, { 1, 2 }, NULL },
        { 1002, { 1, 20 }, "0-99" },
        { 1002, { 20, 30 }, "0-99, 99" },
        { 1000, { 30, 31 }, "7, 3-5, 99" },
        { 0, { 0, 0 }, "99" },
        { 30, { 1000, 1 }, NULL },
    };
    static const uint32_t free_ids[] = { 2, 4, 5, 6, 55, 99 };
    g_autoptr(GError) error = NULL;
    Ivshmem2Bits set;
    Ivshmem2Access *a = load_rules(
        "# comment\n[one]\nusers = 1000, 1001\nids=7;3-5\n"
        "[two]\ngroups=20\n"
        "[three]\nusers=root\ngroups=30 31\nids=99\n", &error);

    g_assert_no_error(error);
    ivshmem2_bits_init(&set, IVSHMEM2_MAX_PEERS);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        GArray *ids = ivshmem2_access_find(a, cases[i].uid, cases[i].gids, 2);
        g_autofree char *text = ids ? ivshmem2_ids_text(ids) : NULL;

        g_assert_cmpstr(text, ==, cases[i].ids);
        g_clear_pointer(&ids, g_array_unref);
    }
    ivshmem2_access_free(a);

    a = load_rules("[all]\nusers=*\nids=3-5, 1, 50-60, *\n", &error);
    g_assert_no_error(error);
    for (int known = 0; known < 2; known++) {
        GArray *ids = ivshmem2_access_find(a, 12345, NULL, 0);

        g_assert_nonnull(ids);
        g_array_set_size(ids, 3);
        g_assert_true(ivshmem2_ids_contain(ids, 1));
        g_assert_true(ivshmem2_ids_contain(ids, 60));
        g_assert_false(ivshmem2_ids_contain(ids, 0));
        g_assert_false(ivshmem2_ids_contain(ids, 61));
        g_assert_true(ivshmem2_ids_contain(NULL, 61));
        for (size_t i = 0; known && i < G_N_ELEMENTS(free_ids); i++) {
            ivshmem2_bits_add(&set, free_ids[i]);
        }
        g_assert_cmpuint(ivshmem2_ids_lowest(ids, &set), ==,
                         known ? 4 : IVSHMEM2_BITS_NONE);
        g_assert_cmpuint(ivshmem2_ids_lowest(NULL, &set), ==,
                         known ? 2 : IVSHMEM2_BITS_NONE);
        if (known) {
            ivshmem2_bits_add(&set, 1);
            g_assert_cmpint(ivshmem2_ids_lowest(ids, &set), ==, 1);
        }
        g_array_unref(ids);
    }
    ivshmem2_bits_clear(&set);
    ivshmem2_access_free(a);
}

static void test_bad_rules(void)
{
    static const struct {
        const char *text;
        const char *words;
    } cases[] = {
        { "", "has no rules, so nobody could connect" },
        { "# nothing\n", "has no rules" },
        { "users=1\n", "does not start with a group" },
        { "[a\nusers=1\n", "cannot read" },
        { "[a]\n", "[a] has neither users nor groups" },
        { "[a]\nids=1\n", "[a] has neither users nor groups" },
        { "[a]\nusers=1\n[b]\nuser=1\n", "[b] has 'user=1': there are users,"
          " groups and ids" },
        { "[a]\nusers=\n", "[a] users: '' is empty" },
        { "[a]\nusers=1\nids= , ;\n", "[a] ids: ', ;' is empty" },
        { "[a]\nusers=no such\n", "[a] users: there is no user 'no'" },
        { "[a]\nusers=-1\n", "there is no user '-1'" },
        { "[a]\nusers=4294967295\n", "there is no user '4294967295'" },
        { "[a]\ngroups=no-such\n", "[a] groups: there is no group 'no-such'" },
        { "[a]\ngroups=*\n", "there is no group '*'" },
        { "[a]\nusers=1\nids=100\n", "[a] ids: '100' is not valid, it must be "
          "an ID from 0 to 99, a range like 0-99" },
        { "[a]\nusers=1\nids=5-4\n", "ids: '5-4' is not valid" },
        { "[a]\nusers=1\nids=1-100\n", "ids: '1-100' is not valid" },
        { "[a]\nusers=1\nids=1-\n", "ids: '1-' is not valid" },
        { "[a]\nusers=1\nids=-1\n", "ids: '-1' is not valid" },
        { "[a]\nusers=1\nids=1-2-3\n", "ids: '1-2-3' is not valid" },
        { "[a]\nusers=1\nids=0x1\n", "ids: '0x1' is not valid" },
        { "[a]\nusers=\\q\n", "there is no user '\\q'" },
        { "[a]\nusers[de]=1\n", "[a] has 'users[de]=1'" },
        { "[a]\nusers=1\nids=1\nusers=2\n", "[a] has 'users' twice" },
        { "[a]\nusers=1\n  ids = 1\n# ids\n\tids=2\r\n",
          "[a] has 'ids' twice" },
        { "[a]\nusers=1\n[b]\nusers=2\n[a]\nids=1\n",
          "[a] is there twice" },
        { "[a b]\nusers=1\n[b]\nusers=2\n\n [a b]\t\n",
          "[a b] is there twice" },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;

        g_assert_null(load_rules(cases[i].text, &error));
        g_test_message("%s", error->message);
        g_assert_nonnull(strstr(error->message, cases[i].words));
        /* the message names the file as well */
        g_assert_nonnull(strstr(error->message, "/ivshmem2-"));
    }
}

/* All groups of this process, which is at both ends */
static void test_groups(void)
{
    gid_t own[NGROUPS_MAX];
    int n_own = getgroups(G_N_ELEMENTS(own), own);
    g_autofree gid_t *gids = NULL;
    size_t n;
    int fds[2];

    g_assert_cmpint(n_own, >=, 0);
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds),
                    ==, 0);
    gids = ivshmem2_process_groups(fds[0], 12345, &n);
    g_assert_cmpuint(n, ==, n_own + 1);
    g_assert_cmpmem(gids, n_own * sizeof(gid_t), own, n_own * sizeof(gid_t));
    g_assert_cmpuint(gids[n_own], ==, 12345);
    ivshmem2_close(&fds[0]);
    ivshmem2_close(&fds[1]);
}

/* With a server */

static void refused_as(Server *s, uid_t uid, uint32_t id, uint32_t code,
                       const char *text)
{
    Ivshmem2Msg hello = make_hello(id);
    Client c;

    client_connect_as(&c, s, uid, 0);
    client_say(&c, &hello);
    client_hear_refusal(&c, code, text);
    client_close(&c);
}

/* Start a server with access rules @fmt: "@" stands for @user, then @other. */
static void start_with_rules(Server *s, const char *options, const char *fmt,
                             unsigned user, unsigned other)
{
    g_autofree char *path = NULL;
    g_autofree char *all = NULL;
    g_auto(GStrv) parts = g_strsplit(fmt, "@", -1);
    g_autofree char *text = g_strdup_printf("%s%u%s%u%s", parts[0], user,
                                            parts[1], other, parts[2]);

    server_init(s);
    path = g_build_filename(s->dir, "rules", NULL);
    g_assert_true(g_file_set_contents(path, text, -1, NULL));
    g_assert_cmpint(chmod(s->dir, 0711), ==, 0);
    all = g_strdup_printf("--socket-mode 666 --access %s %s", path, options);
    server_start(s, all);
    g_unlink(path);
}

static void test_access(void)
{
    Ivshmem2Msg resume;
    Server s;
    Client a, b;

    start_with_rules(&s, "--max-peers 8",
                     "[some]\nusers = @, 4242\nids = 5, 2-3\n"
                     "[others]\ngroups = @\nids = 1\n", geteuid(), 4243);
    client_refused_id(&s, 0, IVSHMEM2_REFUSAL_PERMISSION, "may not take ID 0, "
                      "but 5, 2-3");
    client_refused_id(&s, 8, IVSHMEM2_REFUSAL_ID_RANGE, "ID 8 is out of range");
    client_join(&a, &s, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(a.welcome.id, ==, 2);
    resume = make_resume(&a);
    resume.hello.id = 1;
    client_refused(&s, &resume, IVSHMEM2_REFUSAL_PERMISSION,
                   "may not take ID 1");
    client_join(&b, &s, 5);
    client_leave(&b);
    client_leave(&a);
    /* the lowest free ID comes first, and with all taken the link is full */
    for (uint32_t id = 2; id < 6; id += id) {
        client_join(&a, &s, 3);
        client_join(&b, &s, IVSHMEM2_ID_ANY);
        g_assert_cmpuint(b.welcome.id, ==, 2);
        client_leave(&b);
        client_leave(&a);
    }
    {
        Client all[3];

        for (size_t i = 0; i < G_N_ELEMENTS(all); i++) {
            client_join(&all[i], &s, IVSHMEM2_ID_ANY);
        }
        g_assert_cmpuint(all[2].welcome.id, ==, 5);
        client_refused_id(&s, IVSHMEM2_ID_ANY, IVSHMEM2_REFUSAL_FULL,
                          "may take "
                          "(5, 2-3) are taken");
        for (size_t i = 0; i < G_N_ELEMENTS(all); i++) {
            client_leave(&all[i]);
        }
    }
    server_end(&s);
}

/* Wait until a client that wants @id is refused for this reason. */
static void wait_until_refused(Server *s, uint32_t id, const char *text)
{
    Ivshmem2Msg hello = make_hello(id);
    int tries = SOON_MS / 10;

    for (;;) {
        const Ivshmem2Msg *msg;
        bool found;
        Client c;

        client_connect(&c, s);
        client_say(&c, &hello);
        g_assert_cmpuint(client_hear_any(&c), ==, IVSHMEM2_MSG_REFUSED);
        msg = &c.transport.in.msg;
        found = strstr(msg->refusal.text, text);
        client_close(&c);
        if (found) {
            return;
        }
        wait_a_little(&tries);
    }
}

/* SIGHUP brings new rules into force, unless they are wrong. */
static void test_access_reload(void)
{
    static const char *const rules[] = {
        "[a]\nusers=*\nids=0\n", "[a]\nusers=*\nids=1\n",
        "[a]\nusers=*\nids=99\n", "[a]\nusers=*\nids=3\n",
    };
    g_autofree char *path = NULL;
    g_autofree char *options = NULL;
    Client first;
    Server s;

    server_init(&s);
    path = g_build_filename(s.dir, "rules", NULL);
    options = g_strdup_printf("--max-peers 4 --access %s", path);
    g_assert_true(g_file_set_contents(path, rules[0], -1, NULL));
    server_start(&s, options);
    client_join(&first, &s, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(first.welcome.id, ==, 0);
    for (uint32_t i = 1; i < G_N_ELEMENTS(rules); i++) {
        g_assert_true(g_file_set_contents(path, rules[i], -1, NULL));
        kill(s.pid, SIGHUP);
        if (i == 2) {
            g_usleep(NEVER_MS * 1000);
            client_refused_id(&s, 2, IVSHMEM2_REFUSAL_PERMISSION, "but 1");
        } else {
            wait_until_free(&s, i);
        }
    }
    /* peers that have joined stay */
    client_sync(&first);
    client_leave(&first);
    g_unlink(path);
    server_end(&s);
}

/* New rules count for connections that have not joined. */
static void test_access_reload_before_hello(void)
{
    g_autofree char *path = NULL;
    g_autofree char *options = NULL;
    g_autofree char *nobody = g_strdup_printf("[a]\nusers=%u\n",
                                              geteuid() + 1);
    Ivshmem2Msg hello = make_hello(1);
    Client a, b, c;
    Server s;

    server_init(&s);
    path = g_build_filename(s.dir, "rules", NULL);
    options = g_strdup_printf("--max-peers 4 --access %s", path);
    g_assert_true(g_file_set_contents(path, "[a]\nusers=*\n", -1, NULL));
    server_start(&s, options);
    client_connect(&a, &s);
    client_connect(&b, &s);
    client_join(&c, &s, 3);

    /* fewer IDs */
    g_assert_true(g_file_set_contents(path, "[a]\nusers=*\nids=0,2\n", -1,
                                      NULL));
    kill(s.pid, SIGHUP);
    wait_until_refused(&s, 3, "may not take ID 3, but 0, 2");
    client_say(&a, &hello);
    client_hear_refusal(&a, IVSHMEM2_REFUSAL_PERMISSION,
                        "may not take ID 1, but 0, 2");
    client_close(&a);

    /* none */
    g_assert_true(g_file_set_contents(path, nobody, -1, NULL));
    kill(s.pid, SIGHUP);
    client_hear_refusal(&b, IVSHMEM2_REFUSAL_PERMISSION, "may not connect");
    client_close(&b);
    client_sync(&c);
    client_leave(&c);
    g_unlink(path);
    server_end(&s);
}

static void test_no_access(void)
{
    Server s;

    start_with_rules(&s, "--max-peers 4",
                     "[rule]\nusers = @\n[rule 2]\nusers = @\n",
                     getuid() + 10000, getuid() + 20000);
    client_refused_id(&s, IVSHMEM2_ID_ANY, IVSHMEM2_REFUSAL_PERMISSION,
                      "may not connect");
    server_end(&s);
}

static void test_access_of_others(void)
{
    const gid_t group = 54321;
    Server s;
    Client a, b, c;

    if (geteuid() != 0) {
        g_test_skip("only root can become another user");
        return;
    }
    start_with_rules(&s, "--max-peers 8",
                     "[one]\nusers=@\nids=0-1\n"
                     "[group]\ngroups=54321\nids=4-5\n"
                     "[other]\nusers=@\nids=1;6\n", USER_UID, OTHER_UID);
    client_join_as(&a, &s, USER_UID, 0, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(a.welcome.id, ==, 0);
    /* no rule gives ID 0 to this user, who has more than one rule */
    client_join_as(&b, &s, OTHER_UID, group, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(b.welcome.id, ==, 1);
    client_join_as(&c, &s, OTHER_UID, group, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(c.welcome.id, ==, 4);
    client_leave(&c);
    client_join_as(&c, &s, SERVER_UID, group, 5);
    client_leave(&c);
    refused_as(&s, OTHER_UID, 4, IVSHMEM2_REFUSAL_PERMISSION,
               "may not take ID 4");
    refused_as(&s, USER_UID, 6, IVSHMEM2_REFUSAL_PERMISSION, "but 0-1");
    refused_as(&s, SERVER_UID, 0, IVSHMEM2_REFUSAL_PERMISSION,
               "may not connect");
    /* rules apply to root as well */
    refused_as(&s, 0, 0, IVSHMEM2_REFUSAL_PERMISSION, "may not connect");
    client_leave(&b);
    client_leave(&a);
    server_end(&s);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    signal(SIGPIPE, SIG_IGN);
    g_test_add_func("/ivshmem2/server/rules", test_rules);
    g_test_add_func("/ivshmem2/server/bad-rules", test_bad_rules);
    g_test_add_func("/ivshmem2/server/groups", test_groups);
    g_test_add_func("/ivshmem2/server/access", test_access);
    g_test_add_func("/ivshmem2/server/access-reload", test_access_reload);
    g_test_add_func("/ivshmem2/server/access-reload-before-hello",
                    test_access_reload_before_hello);
    g_test_add_func("/ivshmem2/server/no-access", test_no_access);
    g_test_add_func("/ivshmem2/server/access-of-others", test_access_of_others);
    return g_test_run();
}
