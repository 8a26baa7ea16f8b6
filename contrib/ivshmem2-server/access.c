/*
 * Access rules: the users that may connect, and the IDs that they may take
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <grp.h>
#include <pwd.h>
#include <string.h>
#include "access.h"
#include "libivshmem2-util.h"

#define EVERYTHING      "*"
#define SEPARATORS      " \t,;"
/* 2^32 - 1 is no user's or group's number. */
#define MAX_NUMBER      (UINT32_MAX - 1)

typedef struct Rule {
    bool everybody;
    GArray *uids;
    GArray *gids;
    GArray *ids;
} Rule;

struct Ivshmem2Access {
    GPtrArray *rules;
};

/* A place in the file, for error messages */
typedef struct Place {
    const char *path;
    const char *group;
    const char *key;
    uint32_t max_peers;
} Place;

/* Not ivshmem2_parse_number(): it is no error if @word is a name. */
static bool parse_number(const char *word, uint64_t max, uint32_t *number)
{
    const char *end;
    uint64_t n;

    if (!ivshmem2_scan_number(word, 10, &n, &end) || *end || n > max) {
        return false;
    }
    *number = n;
    return true;
}

static bool fail_at(GError **error, const Place *at, const char *fmt, ...)
    G_GNUC_PRINTF(3, 4);

/* ivshmem2_fail() with the place in the file before the text */
static bool fail_at(GError **error, const Place *at, const char *fmt, ...)
{
    g_autofree char *text = NULL;
    va_list ap;

    va_start(ap, fmt);
    text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT, "%s: [%s] %s: %s",
                         at->path, at->group, at->key, text);
}

/* One word of each key */

static bool parse_user(Rule *rule, const Place *at, const char *word,
                       GError **error)
{
    struct passwd *passwd;
    uint32_t uid;

    if (!strcmp(word, EVERYTHING)) {
        rule->everybody = true;
        return true;
    }
    if (!parse_number(word, MAX_NUMBER, &uid)) {
        passwd = getpwnam(word);
        if (!passwd) {
            return fail_at(error, at, "there is no user '%s'", word);
        }
        uid = passwd->pw_uid;
    }
    g_array_append_val(rule->uids, uid);
    return true;
}

static bool parse_group(Rule *rule, const Place *at, const char *word,
                        GError **error)
{
    struct group *group;
    uint32_t gid;

    if (!parse_number(word, MAX_NUMBER, &gid)) {
        group = getgrnam(word);
        if (!group) {
            return fail_at(error, at, "there is no group '%s'", word);
        }
        gid = group->gr_gid;
    }
    g_array_append_val(rule->gids, gid);
    return true;
}

static bool parse_ids(Rule *rule, const Place *at, const char *word,
                      GError **error)
{
    Ivshmem2IdRange range = { 0, at->max_peers - 1 };
    const char *dash = strchr(word, '-');
    g_autofree char *first = dash ? g_strndup(word, dash - word)
                                  : g_strdup(word);

    if (strcmp(word, EVERYTHING) &&
        (!parse_number(first, range.last, &range.first) ||
         !parse_number(dash ? dash + 1 : word, range.last, &range.last) ||
         range.first > range.last)) {
        return fail_at(error, at, "'%s' is not valid, it must be an ID from 0 "
                       "to %u, a range like 0-%u, or *", word,
                       at->max_peers - 1, at->max_peers - 1);
    }
    g_array_append_val(rule->ids, range);
    return true;
}

static const struct {
    const char *name;
    bool (*parse)(Rule *rule, const Place *at, const char *word,
                  GError **error);
} keys[] = {
    { "users", parse_user },
    { "groups", parse_group },
    { "ids", parse_ids },
};

/* Rules */

static bool parse_key(Rule *rule, const Place *at, GKeyFile *file,
                      GError **error)
{
    g_autofree char *value = g_key_file_get_value(file, at->group, at->key,
                                                  NULL);
    g_auto(GStrv) words = NULL;
    size_t i = 0;
    bool any = false;

    while (i < G_N_ELEMENTS(keys) && strcmp(keys[i].name, at->key)) {
        i++;
    }
    if (i == G_N_ELEMENTS(keys)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "%s: [%s] has '%s=%s': there are users, groups "
                             "and ids, and nothing else", at->path, at->group,
                             at->key, value);
    }
    words = g_strsplit_set(value, SEPARATORS, -1);
    for (char **word = words; *word; word++) {
        if (**word) {
            any = true;
            if (!keys[i].parse(rule, at, *word, error)) {
                return false;
            }
        }
    }
    return any || fail_at(error, at, "'%s' is empty", value);
}

static bool parse_rule(Rule *rule, Place *at, GKeyFile *file, GError **error)
{
    g_auto(GStrv) names = g_key_file_get_keys(file, at->group, NULL, error);

    if (!names) {
        return false;
    }
    for (char **name = names; *name; name++) {
        at->key = *name;
        if (!parse_key(rule, at, file, error)) {
            return false;
        }
    }
    if (!rule->everybody && !rule->uids->len && !rule->gids->len) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "%s: [%s] has neither users nor groups",
                             at->path, at->group);
    }
    if (!rule->ids->len) {
        at->key = "ids";
        return parse_ids(rule, at, EVERYTHING, error);
    }
    return true;
}

static Rule *rule_new(void)
{
    Rule *rule = g_new0(Rule, 1);

    rule->uids = g_array_new(false, false, sizeof(uint32_t));
    rule->gids = g_array_new(false, false, sizeof(uint32_t));
    rule->ids = g_array_new(false, false, sizeof(Ivshmem2IdRange));
    return rule;
}

static void rule_free(void *opaque)
{
    Rule *rule = opaque;

    g_array_unref(rule->uids);
    g_array_unref(rule->gids);
    g_array_unref(rule->ids);
    g_free(rule);
}

/*
 * GKeyFile merges groups of one name, and takes the last one of several keys.
 * It found no error in @text.
 */
static bool check_duplicates(const char *path, const char *text,
                             GError **error)
{
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal,
                                                       g_free, NULL);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    const char *group = "";

    for (char **next = lines; *next; next++) {
        char *line = g_strstrip(*next);
        bool is_group = *line == '[';

        if (!*line || *line == '#') {
            continue;
        }
        line[strcspn(line, is_group ? "]" : "=")] = 0;
        if (is_group) {
            group = line + 1;
        } else {
            g_strchomp(line);
        }
        /* no group's name has a bracket */
        if (!g_hash_table_add(seen, is_group ? g_strdup(group) :
                              g_strdup_printf("%s]%s", group, line))) {
            return is_group
                ? ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT, "%s: [%s] is "
                                "there twice, each rule needs a name of its "
                                "own", path, group)
                : ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT, "%s: [%s] has "
                                "'%s' twice, put all of them in one line",
                                path, group, line);
        }
    }
    return true;
}

/* Returns NULL if @path cannot be read, or is no such file. */
static GKeyFile *load_file(const char *path, GError **error)
{
    g_autoptr(GKeyFile) file = g_key_file_new();
    g_autofree char *text = NULL;
    size_t len;

    /* a key like users[de] is kept as well, to be reported as unknown */
    if (!g_file_get_contents(path, &text, &len, error) ||
        !g_key_file_load_from_data(file, text, len,
                                   G_KEY_FILE_KEEP_TRANSLATIONS, error)) {
        g_prefix_error(error, "cannot read %s: ", path);
        return NULL;
    }
    if (strlen(text) != len) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                      "%s has a zero byte, so it is no text file", path);
        return NULL;
    }
    return check_duplicates(path, text, error) ? g_steal_pointer(&file) : NULL;
}

Ivshmem2Access *ivshmem2_access_load(const char *path, uint32_t max_peers,
                                     GError **error)
{
    g_autoptr(GKeyFile) file = load_file(path, error);
    g_auto(GStrv) groups = NULL;
    Ivshmem2Access *a;

    if (!file) {
        return NULL;
    }
    groups = g_key_file_get_groups(file, NULL);
    if (!*groups) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                      "%s has no rules, so nobody could connect", path);
        return NULL;
    }
    a = g_new0(Ivshmem2Access, 1);
    a->rules = g_ptr_array_new_with_free_func(rule_free);
    for (char **group = groups; *group; group++) {
        Place at = { .path = path, .group = *group, .max_peers = max_peers };
        Rule *rule = rule_new();

        g_ptr_array_add(a->rules, rule);
        if (!parse_rule(rule, &at, file, error)) {
            ivshmem2_access_free(a);
            return NULL;
        }
    }
    return a;
}

void ivshmem2_access_free(Ivshmem2Access *a)
{
    if (a) {
        g_ptr_array_unref(a->rules);
        g_free(a);
    }
}

/* Users */

static bool contains(const GArray *numbers, uint32_t number)
{
    for (guint i = 0; i < numbers->len; i++) {
        if (g_array_index(numbers, uint32_t, i) == number) {
            return true;
        }
    }
    return false;
}

static bool rule_matches(const Rule *rule, uid_t uid, const gid_t *gids,
                         size_t n_gids)
{
    if (rule->everybody || contains(rule->uids, uid)) {
        return true;
    }
    for (size_t i = 0; i < n_gids; i++) {
        if (contains(rule->gids, gids[i])) {
            return true;
        }
    }
    return false;
}

GArray *ivshmem2_access_find(const Ivshmem2Access *a, uid_t uid,
                             const gid_t *gids, size_t n_gids)
{
    GArray *ids = NULL;

    for (guint i = 0; i < a->rules->len; i++) {
        const Rule *rule = g_ptr_array_index(a->rules, i);

        if (rule_matches(rule, uid, gids, n_gids)) {
            if (!ids) {
                ids = g_array_new(false, false, sizeof(Ivshmem2IdRange));
            }
            g_array_append_vals(ids, rule->ids->data, rule->ids->len);
        }
    }
    return ids;
}

/* IDs */

bool ivshmem2_ids_contain(const GArray *ids, uint32_t id)
{
    for (guint i = 0; ids && i < ids->len; i++) {
        const Ivshmem2IdRange *r = &g_array_index(ids, Ivshmem2IdRange, i);

        if (id >= r->first && id <= r->last) {
            return true;
        }
    }
    return !ids;
}

size_t ivshmem2_ids_lowest(const GArray *ids, const Ivshmem2Bits *set)
{
    size_t lowest = IVSHMEM2_BITS_NONE;

    if (!ids) {
        return ivshmem2_bits_next(set, 0);
    }
    for (guint i = 0; i < ids->len; i++) {
        const Ivshmem2IdRange *r = &g_array_index(ids, Ivshmem2IdRange, i);
        size_t id = ivshmem2_bits_next(set, r->first);

        if (id <= r->last) {
            lowest = MIN(lowest, id);
        }
    }
    return lowest;
}

char *ivshmem2_ids_text(const GArray *ids)
{
    GString *text = g_string_new(ids ? NULL : EVERYTHING);

    for (guint i = 0; ids && i < ids->len; i++) {
        const Ivshmem2IdRange *r = &g_array_index(ids, Ivshmem2IdRange, i);

        g_string_append_printf(text, "%s%u", i ? ", " : "", r->first);
        if (r->last > r->first) {
            g_string_append_printf(text, "-%u", r->last);
        }
    }
    return g_string_free(text, false);
}
