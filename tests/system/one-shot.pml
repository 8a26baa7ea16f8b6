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
#define RINGS   2               /* doorbells that are rung, for each vector */
#endif
#ifndef WRITES
#define WRITES  2               /* accesses by each processor of the guest */
#endif
#define VECTORS 2
#define DROPS   2               /* in a row, until the relay waits */

byte bell[VECTORS];             /* eventfds of the vectors */
bool enabling;                  /* eventfd of the ioeventfd */
bool ioeventfd = true;          /* KVM has it */
bool by_kvm = true;             /* the relay looks at it */
bool control;                   /* Interrupt Control, as QEMU knows it */
bool masked, pending;           /* vector 0 */
bool big_lock, lock;
byte drops;
bool storm;                     /* the main loop is to end it */

/* What the guest may expect, by the order of its own accesses */
bool on;                        /* it has enabled reception */
bool owed;                      /* a doorbell was rung since then */

#define begin(l)        atomic { !l -> l = true }
#define end(l)          l = false

#define looks           (control || by_kvm)

/* With the lock: has an enabling write come without QEMU? */
inline look()
{
    atomic {
        if
        :: by_kvm && enabling -> enabling = false; control = true
        :: else
        fi
    }
}

/* Atomic with a look: the enabling writes until now are used up. */
inline deliver()
{
    assert(on);                 /* else: two interrupts for one of them */
    on = false;
    owed = false;
    pending = false;
#ifdef KEEP_ENABLING
    if
    :: control -> control = false
    :: else -> enabling = false
    fi;
#else
    control = false;
    enabling = enabling && !by_kvm;
#endif
    drops = 0
}

/* With the lock: deliver if reception is on, else drop. */
inline look_and_deliver(v)
{
    atomic {
        if
        :: (control || (by_kvm && enabling)) && v == 0 && masked ->
           control = true;
           enabling = enabling && !by_kvm;
           pending = true
        :: (control || (by_kvm && enabling)) && !(v == 0 && masked) ->
           deliver()
        :: else ->
           if
           :: by_kvm && drops < DROPS ->
              drops++;
              storm = (drops == DROPS)
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
    :: bell[v] && control -> bell[v] = 0; look_and_deliver(v)
    :: bell[v] && !control -> bell[v] = 0
    :: else
    fi
#else
    if
    :: atomic { bell[v] -> bell[v] = 0 };
       look_and_deliver(v)
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
    :: (bell[0] || bell[1]) && looks ->
       begin(lock);
       if
       :: looks -> take(0)
       :: else
       fi;
       if
       :: looks -> take(1)
       :: else
       fi;
       end(lock)
    od
}

/* The main loop takes the ioeventfd away, so that the relay waits. */
proctype main_loop()
{
    do
    :: storm ->
       begin(big_lock);
       storm = false;
       ioeventfd = false;
       begin(lock);
#ifndef REMOVE_BLINDLY
       look();
#endif
       by_kvm = false;
       end(lock);
       end(big_lock)
#ifdef MOVES
    /* The registers go and come back, and the relay goes on looking. */
    :: ioeventfd ->
       begin(big_lock);
       ioeventfd = false;
       end(big_lock);
       begin(big_lock);
       ioeventfd = by_kvm;
       end(big_lock);
       break
#endif
    od
}

/* KVM gets the ioeventfd again. */
inline add()
{
#ifdef ADD_FIRST
    ioeventfd = true;
#endif
    begin(lock);
    if
    :: !control -> bell[0] = 0; bell[1] = 0
    :: else
    fi;
    by_kvm = true;
    drops = 0;
    end(lock);
    ioeventfd = true
}

/*
 * The guest's write of 1, when QEMU sees it.  What has arrived before is
 * dropped, but not if the relay looks at the ioeventfd: then another
 * processor may have enabled reception after the look.
 */
inline enable_trapped()
{
    begin(big_lock);
#ifndef ALWAYS_DROP
    if
    :: by_kvm -> atomic { enabling = true; on = true }
    :: !by_kvm ->
#endif
       begin(lock);
       look();
       if
       :: !control ->
          bell[0] = 0;
          bell[1] = 0;
          atomic { control = true; on = true }
       :: else -> on = true
       fi;
       end(lock);
       /* at some of these writes */
       if
       :: !by_kvm -> add()
       :: true
       fi;
#ifndef ALWAYS_DROP
    fi;
#endif
    end(big_lock)
}

inline disable()
{
    begin(big_lock);
    begin(lock);
    look();
    if
    :: control -> take(0); take(1)
    :: else
    fi;
    atomic {
        on = false;
        owed = false;
        enabling = enabling && !by_kvm;
        pending = false
    };
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

inline change_mask()
{
    begin(big_lock);
    begin(lock);
    masked = !masked;
    end(lock);
    begin(lock);
    atomic {
#ifndef UNMASK_BLINDLY
        if
        :: by_kvm && enabling -> enabling = false; control = true
        :: else
        fi;
#endif
        if
        :: !masked && pending ->
#ifdef UNMASK_BLINDLY
           assert(on);
           on = false;
           owed = false;
           pending = false;
           control = false
#else
           deliver()
#endif
        :: else
        fi
    };
    end(lock);
    end(big_lock)
}

proctype processor()
{
    byte i;

    for (i : 1 .. WRITES) {
        if
        :: atomic { ioeventfd -> enabling = true; on = true }
        /* also if another device writes: KVM does not see that */
        :: true -> enable_trapped()
        :: disable()
        :: read_control()
#ifdef MASKS
        :: change_mask()
#endif
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
    timeout -> assert((!owed || (masked && pending)) && !lock && !big_lock)
}
