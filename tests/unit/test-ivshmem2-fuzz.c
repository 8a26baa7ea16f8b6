/*
 * ivshmem2: the fuzz targets, without a fuzzer
 *
 * Runs every input of the corpora, and then inputs that are derived from them,
 * which are the same in each run.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "../fuzz/ivshmem2-fuzz.h"

#define MAX_EDITS   4

typedef struct Corpus {
    const FuzzTarget *target;
    GPtrArray *inputs;          /* of GByteArray */
    char *last_path;            /* file with the input that runs */
    int last_fd;
} Corpus;

static int compare_names(gconstpointer a, gconstpointer b)
{
    return strcmp(*(char **)a, *(char **)b);
}

static void load(Corpus *c)
{
    g_autofree char *path = g_test_build_filename(
        G_TEST_DIST, "..", "fuzz", "corpus", c->target->name, NULL);
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    GDir *dir = g_dir_open(path, 0, NULL);
    const char *name;

    c->inputs = g_ptr_array_new_with_free_func(
        (GDestroyNotify)g_byte_array_unref);
    g_assert_nonnull(dir);
    while ((name = g_dir_read_name(dir))) {
        g_ptr_array_add(names, g_build_filename(path, name, NULL));
    }
    g_dir_close(dir);
    g_ptr_array_sort(names, compare_names);
    for (guint i = 0; i < names->len; i++) {
        char *data;
        gsize size;

        g_assert_true(g_file_get_contents(names->pdata[i], &data, &size,
                                          NULL));
        g_ptr_array_add(c->inputs,
                        g_byte_array_new_take((uint8_t *)data, size));
    }
    g_assert_cmpuint(c->inputs->len, >, 0);
}

/* Keep the input, because the test may crash with it. */
static void run(Corpus *c, const GByteArray *input)
{
    g_assert_cmpint(ftruncate(c->last_fd, 0), ==, 0);
    g_assert_cmpint(pwrite(c->last_fd, input->data, input->len, 0), ==,
                    input->len);
    fuzz_run(c->target, input->data, input->len);
}

static void begin(Corpus *c, const FuzzTarget *target)
{
    g_autofree char *name = g_strconcat("test-ivshmem2-fuzz.", target->name,
                                        NULL);

    c->target = target;
    load(c);
    c->last_path = g_test_build_filename(G_TEST_BUILT, name, NULL);
    c->last_fd = open(c->last_path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC,
                      0666);
    g_assert_cmpint(c->last_fd, >=, 0);
    g_test_message("if this fails, %s has the input", c->last_path);
}

static void end(Corpus *c)
{
    ivshmem2_close(&c->last_fd);
    unlink(c->last_path);
    g_free(c->last_path);
    g_ptr_array_unref(c->inputs);
}

static void test_corpus(gconstpointer target)
{
    Corpus c;

    begin(&c, target);
    for (guint i = 0; i < c.inputs->len; i++) {
        run(&c, c.inputs->pdata[i]);
    }
    end(&c);
}

static guint any(GRand *rand, guint n)
{
    return n ? g_rand_int_range(rand, 0, n) : 0;
}

static void edit(GByteArray *b, const GByteArray *other, GRand *rand)
{
    guint at = any(rand, b->len);
    guint len = any(rand, MIN(b->len - at, 32) + 1);
    guint from = any(rand, other->len);
    uint8_t byte = any(rand, 256);
    GByteArray *tail;

    switch (any(rand, 6)) {
    case 0:
        if (b->len) {
            b->data[at] = byte;
        }
        break;
    case 1:
        if (b->len) {
            b->data[at] ^= 1 << byte % 8;
        }
        break;
    case 2:
        g_byte_array_remove_range(b, at, len);
        break;
    case 3:
        g_byte_array_append(b, &byte, 1);
        break;
    case 4:
        /* the end of another input */
        g_byte_array_set_size(b, at);
        g_byte_array_append(b, other->data + from, other->len - from);
        break;
    case 5:
        /* a piece of another input in the middle */
        tail = g_byte_array_new();
        g_byte_array_append(tail, b->data + at, b->len - at);
        g_byte_array_set_size(b, at);
        g_byte_array_append(b, other->data + from,
                            MIN(other->len - from, byte));
        g_byte_array_append(b, tail->data, tail->len);
        g_byte_array_unref(tail);
        break;
    }
}

static const GByteArray *choose(const Corpus *c, GRand *rand)
{
    return c->inputs->pdata[any(rand, c->inputs->len)];
}

static void test_mutations(gconstpointer target)
{
    GRand *rand = g_rand_new_with_seed(1);
    Corpus c;

    begin(&c, target);
    for (unsigned i = 0; i < c.target->n_mutations; i++) {
        const GByteArray *base = choose(&c, rand);
        GByteArray *input = g_byte_array_new();

        g_byte_array_append(input, base->data, base->len);
        for (guint n = 1 + any(rand, MAX_EDITS); n; n--) {
            edit(input, choose(&c, rand), rand);
        }
        run(&c, input);
        g_byte_array_unref(input);
    }
    end(&c);
    g_rand_free(rand);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    fuzz_init();
    for (const FuzzTarget *t = fuzz_targets; t->name; t++) {
        g_autofree char *corpus = g_strdup_printf(
            "/ivshmem2/fuzz/%s/corpus", t->name);
        g_autofree char *mutations = g_strdup_printf(
            "/ivshmem2/fuzz/%s/mutations", t->name);

        g_test_add_data_func(corpus, t, test_corpus);
        g_test_add_data_func(mutations, t, test_mutations);
    }
    return g_test_run();
}
