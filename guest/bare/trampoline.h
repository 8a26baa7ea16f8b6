/*
 * The code by which other processors of the bare-metal test guest start
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TRAMPOLINE_H
#define TRAMPOLINE_H

/* A page below 1 MiB */
#define TRAMPOLINE      0x8000
#define TRAMPOLINE_SIZE 96

#endif /* TRAMPOLINE_H */
