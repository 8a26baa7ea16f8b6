/*
 * Join a link and interrupt a peer: ring SOCKET ID VECTOR
 *
 * cc ring.c $(pkg-config --cflags --libs libivshmem2) -o ring
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#include <libivshmem2.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    g_autoptr(Ivshmem2Peer) peer = NULL;
    g_autoptr(GError) error = NULL;

    if (argc == 4) {
        peer = ivshmem2_peer_open_socket(argv[1], NULL, &error);
    }
    if (peer && ivshmem2_peer_ring(peer, atoi(argv[2]), atoi(argv[3]),
                                   &error)) {
        printf("peer %u rang\n", ivshmem2_peer_info(peer)->id);
        return 0;
    }
    fprintf(stderr, "%s\n", error ? error->message
                                  : "usage: ring SOCKET ID VECTOR");
    return 1;
}
