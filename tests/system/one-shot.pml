/*
 * One-shot mode with an ioeventfd for "1 to Interrupt Control", as
 * hw/misc/ivshmem2-irq.c does it: enable, ring, drain, deliver
 *
 * The eventfds count in steps of their own, since each has its own lock in the
 * kernel; all other steps can be interleaved with them.  tests/system/one-shot
 * runs this model, and again with each of the mistakes below, which it has to
 * find.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef RINGS
#define RINGS   3               /* doorbells that are rung, for each vector */
#endif
#ifndef WRITES
#define WRITES  2               /* accesses by each processor of the guest */
#endif
#define VECTORS 2
#define DROPS   2               /* in a row, until the relay waits */

byte bell[VECTORS];             /* eventfds of the vectors */
byte enabling;                  /* eventfd of the ioeventfd */
bool ioeventfd = true;          /* KVM has it */
bool control;                   /* Interrupt Control, as QEMU knows it */
bool big_lock, lock;
byte drops;
bool wait_asked, waiting;       /* for a write that QEMU sees */

/* What the guest may expect, by the order of its own accesses */
bool on;                        /* it has enabled reception */
bool owed;                      /* a doorbell was rung since then */

#define begin(l)        atomic { !l -> l = true }
#define end(l)          l = false

/* With the lock: has an enabling write come by the ioeventfd? */
inline look()
{
    atomic {
        if
        :: enabling -> enabling = 0; control = true
        :: else
        fi
    }
}

/*
 * With the lock: deliver if reception is on, else drop.  With this look, the
 * enabling writes until now are used up.
 */
inline look_and_deliver()
{
    atomic {
        if
        :: control || enabling ->
           assert(on);          /* else: two interrupts for one of them */
           on = false;
           owed = false;
#ifdef KEEP_ENABLING
           if
           :: control -> control = false
           :: else -> enabling = 0
           fi;
#else
           control = false;
           enabling = 0;
#endif
           drops = 0
        :: else -> if
                   :: drops < DROPS -> drops++
                   :: else
                   fi
        fi
    }
}

/* With the lock */
inline take(v)
{
#ifdef LOOK_FIRST
    look();
    if
    :: bell[v] && control -> bell[v] = 0; look_and_deliver()
    :: bell[v] && !control -> bell[v] = 0
    :: else
    fi
#else
    if
    :: atomic { bell[v] -> bell[v] = 0 };
       look_and_deliver()
    :: else
    fi
#endif
}

proctype peer(byte vector)
{
    byte i;

    for (i : 1 .. RINGS) {
        atomic {
            bell[vector]++;
            owed = owed || on
        }
    }
}

proctype relay()
{
    do
    :: (bell[0] || bell[1]) && !waiting ->
       begin(lock);
       if
       :: !waiting ->
          take(0);
          take(1);
          if
          :: !control && drops == DROPS -> wait_asked = true
          :: else
          fi
       :: else
       fi;
       end(lock)
    od
}

/* The main loop takes the ioeventfd away, so that the relay can wait. */
proctype main_loop()
{
    do
    :: wait_asked ->
       begin(big_lock);
       wait_asked = false;
       ioeventfd = false;
       begin(lock);
#ifndef REMOVE_BLINDLY
       look();
#endif
       drops = 0;
       waiting = !control;
       end(lock);
       end(big_lock)
    od
}

/*
 * The guest's write of 1, when QEMU sees it.  What has arrived before is
 * dropped, but not if KVM has got the ioeventfd in the meantime: then another
 * processor may have enabled reception after the look.
 */
inline enable_trapped()
{
    begin(big_lock);
    begin(lock);
#ifndef ALWAYS_DROP
    if
    :: atomic { ioeventfd -> enabling++; on = true }
    :: !ioeventfd ->
#endif
       look();
       if
       :: !control ->
          bell[0] = 0;
          bell[1] = 0;
          atomic { control = true; on = true };
          waiting = false
       :: else
       fi;
#ifndef ALWAYS_DROP
    fi;
#endif
    end(lock);
    /* KVM gets it again at some of these writes. */
    if
    :: ioeventfd = true
    :: true
    fi;
    end(big_lock)
}

inline disable()
{
    begin(big_lock);
    begin(lock);
    take(0);
    take(1);
    atomic { on = false; owed = false; enabling = 0 };
    control = false;
    end(lock);
    end(big_lock)
}

inline read_control()
{
    begin(big_lock);
    begin(lock);
    look();
    end(lock);
    end(big_lock)
}

proctype processor()
{
    byte i;

    for (i : 1 .. WRITES) {
        if
        :: atomic {
               ioeventfd -> enabling++; on = true
           }
        :: !ioeventfd -> enable_trapped()
        :: disable()
        :: read_control()
        fi
    }
}

init {
    atomic {
        run peer(0);
        run peer(1);
        run processor();
        run processor();
        run relay();
        run main_loop()
    }
    /* Nothing happens any more: nothing may be owed to the guest. */
    timeout -> assert(!owed && !lock && !big_lock)
}
