/*
 * ivshmem2 wire protocol: what is spoken over the server's unix socket
 *
 * Layouts and limits, nothing else.  docs/interop/ivshmem2.rst is the
 * prose; the parser is subprojects/libivshmem2/codec.c, and device, server,
 * library, tests and fuzzers all use that one.
 *
 * All integers are little-endian on the wire.  Every message is a header
 * and a payload whose size its type fixes.  File descriptors travel with
 * the first byte of the message that announces them.
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#ifndef HW_MISC_IVSHMEM2_H
#define HW_MISC_IVSHMEM2_H

#include <stdint.h>

/* Limits of the device specification */
#define IVSHMEM2_MIN_PEERS          2
#define IVSHMEM2_MAX_PEERS          65536
#define IVSHMEM2_MAX_VECTORS        2048

/* Limits of this protocol */
#define IVSHMEM2_MIN_PAGE_SIZE      4096
#define IVSHMEM2_MAX_PAGE_SIZE      65536
/* State Table, R/W section and all output sections together */
#define IVSHMEM2_MAX_SIZE           (UINT64_C(1) << 46)
/*
 * Every output section is a mapping of its own in every peer, and Linux
 * allows a process 65,530 mappings by default (vm.max_map_count).
 */
#define IVSHMEM2_MAX_OUTPUTS        4096
/* QEMU's socket channel takes no more descriptors from one message */
#define IVSHMEM2_MAX_FDS            16

#define IVSHMEM2_NAME_SIZE          64
#define IVSHMEM2_TEXT_SIZE          248
#define IVSHMEM2_UUID_SIZE          16

/* The versions of the protocol that this header describes */
#define IVSHMEM2_VERSION_MIN        1
#define IVSHMEM2_VERSION_MAX        1

/* "IVM2", so that a stranger on the socket is recognized at once */
#define IVSHMEM2_MAGIC              UINT32_C(0x324d5649)

/* Ivshmem2Hello.id: the server chooses */
#define IVSHMEM2_ID_ANY             UINT32_C(0xffffffff)

/* Message types; IVSHMEM2_MESSAGES below says what they are like */
enum Ivshmem2Type {
    /* client to server */
    IVSHMEM2_MSG_HELLO          = 0x0001,
    IVSHMEM2_MSG_STATE_CHANGED  = 0x0002,
    IVSHMEM2_MSG_RING           = 0x0003,
    IVSHMEM2_MSG_STATE_ANNOUNCED = 0x0004,
    IVSHMEM2_MSG_GOODBYE        = 0x0005,
    /* server to client */
    IVSHMEM2_MSG_WELCOME        = 0x0101,
    IVSHMEM2_MSG_OUTPUTS        = 0x0102,
    IVSHMEM2_MSG_EVENTFDS       = 0x0103,
    IVSHMEM2_MSG_READY          = 0x0104,
    IVSHMEM2_MSG_REFUSED        = 0x0105,
};

typedef struct Ivshmem2Header {
    uint16_t type;              /* enum Ivshmem2Type */
    uint16_t fds;               /* descriptors sent with this message */
    uint32_t size;              /* of the whole message, header included */
} Ivshmem2Header;

/* Interrupt features, in Ivshmem2Hello (offered) and Ivshmem2Welcome (used) */
#define IVSHMEM2_F_MSIX             (UINT32_C(1) << 0)
#define IVSHMEM2_F_INTX             (UINT32_C(1) << 1)
#define IVSHMEM2_F_INTERRUPTS       (IVSHMEM2_F_MSIX | IVSHMEM2_F_INTX)

/* What a client wants to be, in Ivshmem2Hello.  Others are refused. */
enum Ivshmem2Role {
    IVSHMEM2_ROLE_PEER      = 0,
};

/* The client's first message; its layout is the same in all versions. */
typedef struct Ivshmem2Hello {
    uint32_t magic;             /* IVSHMEM2_MAGIC */
    uint16_t version_min;       /* versions the client speaks */
    uint16_t version_max;
    uint32_t features;          /* IVSHMEM2_F_*: what it can offer */
    uint32_t vectors;           /* MSI-X: the most it can offer, else 1 */
    uint32_t id;                /* wanted ID or IVSHMEM2_ID_ANY */
    uint32_t role;              /* enum Ivshmem2Role */
    uint8_t session[IVSHMEM2_UUID_SIZE];    /* to resume; zeros: a new one */
    uint8_t vm_uuid[IVSHMEM2_UUID_SIZE];    /* zeros: none */
    char name[IVSHMEM2_NAME_SIZE];          /* for people; NUL-padded UTF-8 */
} Ivshmem2Hello;

/*
 * Everything that stays constant for the session.
 * Descriptors: the State Table; the R/W section unless rw_size is 0.
 */
typedef struct Ivshmem2Welcome {
    uint16_t version;           /* the one spoken from here on */
    uint16_t protocol;          /* this peer's protocol type */
    uint32_t features;          /* exactly one of IVSHMEM2_F_INTERRUPTS */
    uint32_t vectors;           /* of every peer: 1 ... 2048 */
    uint32_t id;                /* of this peer */
    uint32_t max_peers;         /* 2 ... 65536 */
    uint32_t page_size;         /* of the link; sizes are multiples of it */
    uint32_t state_table_size;
    uint32_t reserved;          /* 0 */
    uint64_t rw_size;           /* may be 0 */
    uint64_t output_size;       /* may be 0 */
    uint8_t session[IVSHMEM2_UUID_SIZE];
} Ivshmem2Welcome;

/*
 * Output sections first ... first + fds - 1, one descriptor each: the own
 * one can be written, the others can only be read.
 */
typedef struct Ivshmem2Outputs {
    uint32_t first;
    uint32_t reserved;          /* 0 */
} Ivshmem2Outputs;

/*
 * The eventfds of peer id for vectors first ... first + fds - 1.  As an
 * answer, fds is 1, or 0 where the target does not exist (yet).
 */
typedef struct Ivshmem2Eventfds {
    uint32_t id;
    uint32_t first;
} Ivshmem2Eventfds;

/* The vector of a peer that a client wants to interrupt */
typedef struct Ivshmem2Target {
    uint32_t id;
    uint32_t vector;
} Ivshmem2Target;

/* The state that a client has told the other peers about by itself */
typedef struct Ivshmem2Announcement {
    uint32_t state;
    uint32_t reserved;          /* 0 */
} Ivshmem2Announcement;

/* Why the server ends the connection */
enum Ivshmem2RefusalCode {
    IVSHMEM2_REFUSAL_PROTOCOL   = 1,    /* a message that makes no sense */
    IVSHMEM2_REFUSAL_VERSION    = 2,    /* no common version */
    IVSHMEM2_REFUSAL_FULL       = 3,    /* all IDs are taken */
    IVSHMEM2_REFUSAL_ID_TAKEN   = 4,    /* the wanted ID is taken */
    IVSHMEM2_REFUSAL_ID_RANGE   = 5,    /* the link has no such ID */
    IVSHMEM2_REFUSAL_INTERRUPTS = 6,    /* cannot offer what the link needs */
    IVSHMEM2_REFUSAL_PERMISSION = 7,    /* may not connect, or not as this ID */
    IVSHMEM2_REFUSAL_SESSION    = 8,    /* the session cannot be resumed */
    IVSHMEM2_REFUSAL_LIMIT      = 9,    /* the server's limits are exhausted */
    IVSHMEM2_REFUSAL_TIMEOUT    = 10,   /* the client took too long */
    IVSHMEM2_REFUSAL_SHUTDOWN   = 11,   /* the server ends */
};

/* The last message before the server closes; same layout in all versions. */
typedef struct Ivshmem2Refusal {
    uint32_t code;              /* enum Ivshmem2RefusalCode */
    uint32_t reserved;          /* 0 */
    char text[IVSHMEM2_TEXT_SIZE];  /* for people; NUL-padded UTF-8 */
} Ivshmem2Refusal;

/*
 * All that the codec knows of a message: name, sender, minimum and maximum
 * number of descriptors, size of the payload, and the widths in bytes of the
 * integers that the payload starts with.
 */
#define IVSHMEM2_MESSAGES(MSG)                                                \
    MSG(HELLO, CLIENT, 0, 0, sizeof(Ivshmem2Hello), "4" "22" "4444")          \
    MSG(STATE_CHANGED, CLIENT, 0, 0, 0, "")                                   \
    MSG(RING, CLIENT, 0, 0, sizeof(Ivshmem2Target), "44")                     \
    MSG(STATE_ANNOUNCED, CLIENT, 0, 0, sizeof(Ivshmem2Announcement), "44")    \
    MSG(GOODBYE, CLIENT, 0, 0, 0, "")                                         \
    MSG(WELCOME, SERVER, 1, 2, sizeof(Ivshmem2Welcome), "22" "4444444" "88")  \
    MSG(OUTPUTS, SERVER, 1, IVSHMEM2_MAX_FDS, sizeof(Ivshmem2Outputs), "44")  \
    MSG(EVENTFDS, SERVER, 0, IVSHMEM2_MAX_FDS, sizeof(Ivshmem2Eventfds), "44") \
    MSG(READY, SERVER, 0, 0, 0, "")                                           \
    MSG(REFUSED, SERVER, 0, 0, sizeof(Ivshmem2Refusal), "44")

/* A message in memory.  In this order and without padding, as on the wire. */
typedef struct Ivshmem2Msg {
    Ivshmem2Header hdr;
    union {
        Ivshmem2Hello hello;
        Ivshmem2Welcome welcome;
        Ivshmem2Outputs outputs;
        Ivshmem2Eventfds eventfds;
        Ivshmem2Target target;
        Ivshmem2Announcement announcement;
        Ivshmem2Refusal refusal;
    };
} Ivshmem2Msg;

_Static_assert(sizeof(Ivshmem2Header) == 8, "wire layout");
_Static_assert(sizeof(Ivshmem2Hello) == 120, "wire layout");
_Static_assert(sizeof(Ivshmem2Welcome) == 64, "wire layout");
_Static_assert(sizeof(Ivshmem2Outputs) == 8, "wire layout");
_Static_assert(sizeof(Ivshmem2Eventfds) == 8, "wire layout");
_Static_assert(sizeof(Ivshmem2Target) == 8, "wire layout");
_Static_assert(sizeof(Ivshmem2Announcement) == 8, "wire layout");
_Static_assert(sizeof(Ivshmem2Refusal) == 256, "wire layout");
_Static_assert(sizeof(Ivshmem2Msg) == 264, "wire layout");

#endif /* HW_MISC_IVSHMEM2_H */
