/*
 * The bare-metal test guest: executes commands from the serial line
 *
 * It knows PCI, the local APIC and the I/O APIC, but nothing of ivshmem. A
 * line of text is a program of steps that are separated by semicolons:
 *
 *   [repeat COUNT ;] STEP ARGUMENT... ; STEP ARGUMENT... ; ...
 *
 * All numbers are hexadecimal, and "#" is the number of the round, from 1 on.
 * repeat 0 goes on until the next line comes. The answer is one line, either
 * "ok" and the values that the last round read, or "error" and the reason.
 *
 *   say VALUE                          put it into the answer
 *   device SLOT                        use this function of PCI bus 0
 *   place BAR ADDRESS                  its memory that is no BAR is here
 *   read SPACE OFFSET SIZE             put a value into the answer
 *   write SPACE OFFSET SIZE VALUE
 *   check SPACE OFFSET SIZE VALUE      an error if it is not this value
 *   take VECTOR COUNT                  wait for COUNT further interrupts
 *   left VECTOR                        the number of interrupts not yet taken
 *   await VECTOR SPACE OFFSET SIZE VALUE
 *                                      take interrupts until it is this value
 *   until SPACE OFFSET SIZE VALUE      the last round, if it is this value
 *   forget                             drop all interrupts not yet taken
 *   watch VECTOR SPACE OFFSET COUNT    from now on, the handler of this vector
 *                                      copies COUNT 32-bit words from here, at
 *                                      most 16; this copies them once
 *   seen VECTOR                        put the copy into the answer
 *   poll SPACE OFFSET SIZE VALUE       read until it is this value; no halting
 *   fill SPACE OFFSET COUNT VALUE      write COUNT 64-bit words
 *   sum SPACE OFFSET COUNT             read and add COUNT 64-bit words
 *   sweep SPACE OFFSET VALUE STEP COUNT
 *                                      write COUNT 32-bit words, all to this
 *                                      offset: VALUE, VALUE + STEP and so on
 *   copy SPACE OFFSET SPACE OFFSET     copy a 32-bit word to the second offset
 *   spin SPACE OFFSET VALUE            the second processor begins to write
 *                                      this 32-bit word over and over
 *   spun COUNT                         wait until it has written COUNT more
 *   rest                               it ends; the number that it has written
 *   clock                              the time stamp counter
 *   stamp                              store the time since the last stamp
 *   times                              of the stored times: number, median,
 *                                      90 %, 99 %, maximum; then forget them
 *   move SPACE OFFSET SPACE OFFSET COUNT
 *                                      copy COUNT bytes to the second offset
 *   cache ENTRY                        map the first 2 MiB of BAR 2 with this
 *                                      entry of the PAT, 0 to 3
 *   rdmsr NUMBER                       a register of the processor
 *   wrmsr NUMBER VALUE
 *
 * SPACE is the number of a BAR, in memory or I/O ports, or one of enum space.
 * fill and sum are for memory. VECTOR is a vector of the
 * processor. Loops run in ring 3; the guest halts while it waits.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "machine.h"
#include "trampoline.h"

enum space {
    SPACE_BARS,
    SPACE_CONFIG = 6,
    SPACE_IO,
    SPACE_MEMORY,
};

#define MAX_TIMES       32768

#define MAX_ARGS        5
#define MAX_STEPS       24

typedef struct Step {
    const struct Command *command;
    uint64_t args[MAX_ARGS];
    unsigned rounds;            /* one bit for each argument that is "#" */
} Step;

typedef struct Command {
    const char *name;
    unsigned n_args;
    bool (*run)(const uint64_t *args);
} Command;

static uint64_t taken[256];
static uint64_t bars[6];
static bool bar_has_ports[6];
static uint32_t config;                 /* address of the device's function */

/* For the second processor, which writes */
static struct {
    uint32_t *p;
    uint32_t value;
    uint32_t stop;
    uint32_t runs;
    uint64_t written;
} second;

static bool last_round;
static uint64_t times[MAX_TIMES];
static unsigned n_times;
static uint64_t last_stamp;

static char line[1024];
static Step steps[MAX_STEPS];
static char answer[1024];
static size_t answer_len;

/*
 * Text
 */

static void say(const char *text)
{
    while (*text && answer_len < sizeof(answer) - 1) {
        answer[answer_len++] = *text++;
    }
    answer[answer_len] = '\0';
}

static void say_number(uint64_t number)
{
    char text[18], *p = &text[17];

    *p = '\0';
    do {
        *--p = "0123456789abcdef"[number & 15];
        number >>= 4;
    } while (number);
    *--p = ' ';
    say(p);
}

static bool fail(const char *reason)
{
    answer_len = 0;
    say("error ");
    say(reason);
    return false;
}

static bool same_text(const char *a, const char *b)
{
    while (*a && *a == *b) {
        a++;
        b++;
    }
    return *a == *b;
}

/* Returns the next word of the line; words are separated by blanks. */
static char *next_word(char **next)
{
    char *word = *next, *end;

    while (*word == ' ') {
        word++;
    }
    for (end = word; *end && *end != ' '; end++) {
        /* this character belongs to the word */
    }
    *next = *end ? end + 1 : end;
    *end = '\0';
    return word;
}

static bool parse_number(const char *word, uint64_t *number)
{
    *number = 0;
    if (!*word) {
        return false;
    }
    for (; *word; word++) {
        if (*word >= '0' && *word <= '9') {
            *number = *number << 4 | (*word - '0');
        } else if (*word >= 'a' && *word <= 'f') {
            *number = *number << 4 | (*word - 'a' + 10);
        } else {
            return false;
        }
    }
    return true;
}

/*
 * Memory, registers and interrupts
 */

static uint32_t config_read(uint32_t address)
{
    out(0xcf8, 4, 0x80000000 | (address & ~3u));
    return in(0xcfc, 4);
}

static void *space_pointer(uint64_t space, uint64_t offset)
{
    return (void *)((space < SPACE_CONFIG ? bars[space] : 0) + offset);
}

static bool space_has_ports(uint64_t space)
{
    return space == SPACE_IO || (space < SPACE_CONFIG && bar_has_ports[space]);
}

static bool space_valid(uint64_t space)
{
    if (space < SPACE_CONFIG && !bars[space]) {
        return fail("no such BAR");
    }
    return space <= SPACE_MEMORY || fail("no such space");
}

static bool space_is_memory(uint64_t space)
{
    if (!space_valid(space)) {
        return false;
    }
    return (space != SPACE_CONFIG && !space_has_ports(space)) ||
           fail("not memory");
}

/* The port of an offset; ports of SPACE_IO are offsets themselves */
static uint16_t space_port(uint64_t space, uint64_t offset)
{
    return (space == SPACE_IO ? 0 : bars[space]) + offset;
}

static uint64_t space_read(uint64_t space, uint64_t offset, uint64_t size)
{
    void *p;

    if (space == SPACE_CONFIG) {
        out(0xcf8, 4, 0x80000000 | config | (offset & ~3ul));
        return in(0xcfc + (offset & 3), size);
    }
    if (space_has_ports(space)) {
        return in(space_port(space, offset), size);
    }
    p = space_pointer(space, offset);
    return size == 1 ? LOAD((uint8_t *)p) :
           size == 2 ? LOAD((uint16_t *)p) :
           size == 4 ? LOAD((uint32_t *)p) : LOAD((uint64_t *)p);
}

static void space_write(uint64_t space, uint64_t offset, uint64_t size,
                        uint64_t value)
{
    void *p = space_pointer(space, offset);

    if (space == SPACE_CONFIG) {
        out(0xcf8, 4, 0x80000000 | config | (offset & ~3ul));
        out(0xcfc + (offset & 3), size, value);
    } else if (space_has_ports(space)) {
        out(space_port(space, offset), size, value);
    } else if (size == 1) {
        STORE((uint8_t *)p, value);
    } else if (size == 2) {
        STORE((uint16_t *)p, value);
    } else if (size == 4) {
        STORE((uint32_t *)p, value);
    } else {
        STORE((uint64_t *)p, value);
    }
}

static bool run_say(const uint64_t *args)
{
    say_number(args[0]);
    return true;
}

static bool run_device(const uint64_t *args)
{
    config = args[0] << 11;
    if (config_read(config) == 0xffffffff) {
        return fail("no device in this slot");
    }
    for (int i = 0; i < 6; i++) {
        uint32_t bar = config_read(config + 0x10 + 4 * i);

        bar_has_ports[i] = bar & 1;
        bars[i] = bar & (bar & 1 ? ~3u : ~15u);
        if ((bar & 7) == 4) {
            i++;
            bars[i] = 0;
            bar_has_ports[i] = false;
            if (config_read(config + 0x10 + 4 * i)) {
                return fail("a BAR above 4 GiB");
            }
        }
    }
    return true;
}

static bool run_place(const uint64_t *args)
{
    if (args[0] >= SPACE_CONFIG || bars[args[0]]) {
        return fail("there is a BAR");
    }
    bars[args[0]] = args[1];
    return true;
}

static bool run_read(const uint64_t *args)
{
    if (!space_valid(args[0])) {
        return false;
    }
    say_number(space_read(args[0], args[1], args[2]));
    return true;
}

static bool run_write(const uint64_t *args)
{
    if (!space_valid(args[0])) {
        return false;
    }
    space_write(args[0], args[1], args[2], args[3]);
    return true;
}

static bool run_check(const uint64_t *args)
{
    uint64_t value;

    if (!space_valid(args[0])) {
        return false;
    }
    value = space_read(args[0], args[1], args[2]);
    if (value != args[3]) {
        fail("check: there is");
        say_number(value);
        return false;
    }
    return true;
}

static bool run_take(const uint64_t *args)
{
    uint8_t vector = args[0];
    uint64_t now;

    taken[vector] += args[1];
    while ((now = LOAD(&interrupts[vector])) < taken[vector]) {
        if (line_waits()) {
            fail("take: missing");
            say_number(taken[vector] - now);
            taken[vector] = now;
            return false;
        }
        wait_for_interrupt(vector, now);
    }
    return true;
}

static bool run_left(const uint64_t *args)
{
    uint8_t vector = args[0];

    say_number(LOAD(&interrupts[vector]) - taken[vector]);
    return true;
}

static bool run_await(const uint64_t *args)
{
    uint8_t vector = args[0];
    uint64_t value;

    if (!space_valid(args[1])) {
        return false;
    }
    for (;;) {
        taken[vector] = LOAD(&interrupts[vector]);
        value = space_read(args[1], args[2], args[3]);
        if (value == args[4]) {
            return true;
        }
        if (line_waits()) {
            fail("await: there is still");
            say_number(value);
            return false;
        }
        wait_for_interrupt(vector, taken[vector]);
    }
}

static bool run_until(const uint64_t *args)
{
    if (!space_valid(args[0])) {
        return false;
    }
    last_round |= space_read(args[0], args[1], args[2]) == args[3];
    return true;
}

static bool run_watch(const uint64_t *args)
{
    uint8_t vector = args[0];
    Watch *watch = &watches[vector];

    if (!space_is_memory(args[1])) {
        return false;
    }
    if (args[3] > WATCH_WORDS) {
        return fail("watch: too many words");
    }
    watch->source = space_pointer(args[1], args[2]);
    STORE(&watch->count, args[3]);
    set_handler(vector, watch_stubs);
    for (uint64_t i = 0; i < args[3]; i++) {
        STORE(&watch->words[i], LOAD(&watch->source[i]));
    }
    return true;
}

static bool run_seen(const uint64_t *args)
{
    Watch *watch = &watches[(uint8_t)args[0]];

    for (uint64_t i = 0; i < watch->count; i++) {
        say_number(LOAD(&watch->words[i]));
    }
    return true;
}

static bool run_forget(const uint64_t *unused)
{
    (void)unused;
    for (int i = 0; i < 256; i++) {
        taken[i] = LOAD(&interrupts[i]);
    }
    return true;
}

static bool run_poll(const uint64_t *args)
{
    if (!space_valid(args[0])) {
        return false;
    }
    while (space_read(args[0], args[1], args[2]) != args[3]) {
        if (line_waits()) {
            return fail("poll: it does not come");
        }
    }
    return true;
}

static bool run_fill(const uint64_t *args)
{
    uint64_t count = args[2];
    uint64_t *p;

    if (!space_is_memory(args[0])) {
        return false;
    }
    p = space_pointer(args[0], args[1]);
    asm volatile("rep stosq" : "+D" (p), "+c" (count) : "a" (args[3])
                 : "memory");
    return true;
}

static bool run_sweep(const uint64_t *args)
{
    if (!space_valid(args[0])) {
        return false;
    }
    for (uint64_t i = 0; i < args[4]; i++) {
        space_write(args[0], args[1], 4, args[2] + args[3] * i);
    }
    return true;
}

static bool run_sum(const uint64_t *args)
{
    /* volatile, so that the compiler does not leave out reads */
    const volatile uint64_t *p = space_pointer(args[0], args[1]);
    uint64_t sum = 0;

    if (!space_is_memory(args[0])) {
        return false;
    }
    for (uint64_t i = 0; i < args[2]; i++) {
        sum += p[i];
    }
    say_number(sum);
    return true;
}

static bool run_copy(const uint64_t *args)
{
    if (!space_valid(args[0]) || !space_valid(args[2])) {
        return false;
    }
    space_write(args[2], args[3], 4, space_read(args[0], args[1], 4));
    return true;
}

/* Entered by start.S, and left to halt for good */
void second_main(void)
{
    while (!LOAD(&second.stop)) {
        STORE(second.p, second.value);
        STORE(&second.written, second.written + 1);
    }
    STORE(&second.runs, false);
}

static bool run_rest(const uint64_t *unused)
{
    (void)unused;
    STORE(&second.stop, true);
    while (LOAD(&second.runs)) {
        if (line_waits()) {
            return fail("rest: it does not end");
        }
    }
    say_number(second.written);
    return true;
}

static bool run_spin(const uint64_t *args)
{
    if (!space_valid(args[0])) {
        return false;
    }
    if (LOAD(&second.runs)) {
        return fail("spin: it runs already");
    }
    second.p = space_pointer(args[0], args[1]);
    second.value = args[2];
    second.stop = false;
    second.written = 0;
    STORE(&second.runs, true);
    for (size_t i = 0; i < TRAMPOLINE_SIZE; i++) {
        STORE((char *)TRAMPOLINE + i, trampoline[i]);
    }
    apic_write(APIC_COMMAND, TO_OTHERS | INIT);
    apic_write(APIC_COMMAND, TO_OTHERS | STARTUP | TRAMPOLINE >> 12);
    return true;
}

static bool run_spun(const uint64_t *args)
{
    uint64_t until = LOAD(&second.written) + args[0];

    while (LOAD(&second.written) < until) {
        if (line_waits()) {
            return fail("spun: the second processor does not write");
        }
    }
    return true;
}

static uint64_t clock(void)
{
    uint32_t low, high;

    asm volatile("lfence; rdtsc" : "=a" (low), "=d" (high) : : "memory");
    return (uint64_t)high << 32 | low;
}

static bool run_clock(const uint64_t *unused)
{
    (void)unused;
    say_number(clock());
    return true;
}

static bool run_stamp(const uint64_t *unused)
{
    uint64_t now = clock();

    (void)unused;
    if (last_stamp && n_times < MAX_TIMES) {
        times[n_times++] = now - last_stamp;
    }
    last_stamp = clock();
    return true;
}

static void sort_times(void)
{
    for (unsigned gap = n_times / 2; gap; gap /= 2) {
        for (unsigned i = gap; i < n_times; i++) {
            uint64_t time = times[i];
            unsigned j = i;

            for (; j >= gap && times[j - gap] > time; j -= gap) {
                times[j] = times[j - gap];
            }
            times[j] = time;
        }
    }
}

static bool run_times(const uint64_t *unused)
{
    (void)unused;
    sort_times();
    say_number(n_times);
    if (n_times) {
        say_number(times[n_times / 2]);
        say_number(times[n_times * 90 / 100]);
        say_number(times[n_times * 99 / 100]);
        say_number(times[n_times - 1]);
    }
    n_times = 0;
    last_stamp = 0;
    return true;
}

static bool run_move(const uint64_t *args)
{
    void *from = space_pointer(args[0], args[1]);
    void *to = space_pointer(args[2], args[3]);
    uint64_t count = args[4];

    if (!space_valid(args[0]) || !space_valid(args[2])) {
        return false;
    }
    /* the fence empties buffers that combine writes */
    asm volatile("rep movsb; mfence" : "+D" (to), "+S" (from), "+c" (count)
                 : : "memory");
    return true;
}

static bool run_cache(const uint64_t *args)
{
    uint64_t *page = &page_directories[bars[2] >> 21];

    if (!space_valid(2)) {
        return false;
    }
    if (bars[2] >> 32) {
        return fail("cache: BAR 2 is above 4 GiB");
    }
    *page = (*page & ~0x18ul) | (args[0] & 3) << 3;
    flush_page_tables();
    return true;
}

static bool run_rdmsr(const uint64_t *args)
{
    say_number(read_msr(args[0]));
    return true;
}

static bool run_wrmsr(const uint64_t *args)
{
    write_msr(args[0], args[1]);
    return true;
}

static const Command commands[] = {
    { "say", 1, run_say },
    { "device", 1, run_device },
    { "place", 2, run_place },
    { "read", 3, run_read },
    { "write", 4, run_write },
    { "check", 4, run_check },
    { "take", 2, run_take },
    { "left", 1, run_left },
    { "await", 5, run_await },
    { "forget", 0, run_forget },
    { "until", 4, run_until },
    { "watch", 4, run_watch },
    { "seen", 1, run_seen },
    { "poll", 4, run_poll },
    { "fill", 4, run_fill },
    { "sweep", 5, run_sweep },
    { "sum", 3, run_sum },
    { "copy", 4, run_copy },
    { "spin", 3, run_spin },
    { "spun", 1, run_spun },
    { "rest", 0, run_rest },
    { "clock", 0, run_clock },
    { "stamp", 0, run_stamp },
    { "times", 0, run_times },
    { "move", 5, run_move },
    { "cache", 1, run_cache },
    { "rdmsr", 1, run_rdmsr },
    { "wrmsr", 2, run_wrmsr },
};

/*
 * Programs
 */

static bool parse_step(Step *step, char *word, char **next)
{
    step->command = NULL;
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (same_text(word, commands[i].name)) {
            step->command = &commands[i];
        }
    }
    if (!step->command) {
        return fail("no such command");
    }
    step->rounds = 0;
    for (unsigned i = 0; i < step->command->n_args; i++) {
        word = next_word(next);
        if (same_text(word, "#")) {
            step->rounds |= 1u << i;
        } else if (!parse_number(word, &step->args[i])) {
            return fail("not a number");
        }
    }
    word = next_word(next);
    return !*word || same_text(word, ";") || fail("too many arguments");
}

/* Returns the number of steps, or 0 on error. */
static unsigned parse_line(uint64_t *repeat)
{
    char *next = line, *word = next_word(&next);
    unsigned n = 0;

    *repeat = 1;
    if (same_text(word, "repeat")) {
        if (!parse_number(next_word(&next), repeat) ||
            !same_text(next_word(&next), ";")) {
            fail("repeat COUNT ; ...");
            return 0;
        }
        word = next_word(&next);
    }
    for (; *word; word = next_word(&next)) {
        if (n == MAX_STEPS) {
            fail("too many steps");
            return 0;
        }
        if (!parse_step(&steps[n++], word, &next)) {
            return 0;
        }
    }
    if (!n) {
        fail("nothing to do");
    }
    return n;
}

static bool run_round(unsigned n_steps, uint64_t round)
{
    answer_len = 0;
    say("ok");
    for (unsigned i = 0; i < n_steps; i++) {
        Step *step = &steps[i];

        for (unsigned j = 0; step->rounds >> j; j++) {
            if (step->rounds >> j & 1) {
                step->args[j] = round;
            }
        }
        if (!step->command->run(step->args)) {
            say(", in round");
            say_number(round);
            return false;
        }
    }
    return true;
}

static void run_line(void)
{
    uint64_t repeat;
    unsigned n = parse_line(&repeat);

    if (!n) {
        return;
    }
    last_round = false;
    for (uint64_t i = 1; run_round(n, i) && i != repeat; i++) {
        if (last_round || (!repeat && line_waits())) {
            return;
        }
    }
}

/*
 * Start and end
 */

void fatal(uint64_t vector, const uint64_t *stack)
{
    answer_len = 0;
    say("error exception");
    say_number(vector);
    say(", stack");
    for (int i = 0; i < 6; i++) {
        say_number(stack[i]);
    }
    put_text(answer);
    put_char('\n');
    for (;;) {
        halt_unless(&idt[0][1], 0, &idt[0][1], 0);
    }
}

int main(void)
{
    setup_interrupts();
    put_text("\nready\n");
    for (;;) {
        get_line(line, sizeof(line));
        run_line();
        put_text(answer);
        put_char('\n');
    }
}
