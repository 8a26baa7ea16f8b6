/*
 * The privileged part of the bare-metal test guest
 *
 * The PVH boot protocol enters it in 32-bit mode without paging. Everything
 * else runs in ring 3, with all memory and all registers mapped for it; this
 * part counts interrupts, and does what only ring 0 can do when ring 3 requests
 * it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "trampoline.h"

#define SELECTOR_CODE       0x08
#define SELECTOR_DATA       0x10
#define SELECTOR_USER_DATA  0x1b
#define SELECTOR_USER_CODE  0x23
#define SELECTOR_TSS        0x28

#define VECTOR_UD           6
#define VECTOR_FIRST_IRQ    32

#define CR0_PE_PG           0x80000001
#define CR0_CACHE_OFF       0x60000000
#define CR4_PAE             0x20
#define MSR_EFER            0xc0000080
#define EFER_LME            0x100
#define APIC_EOI            0xfee000b0

#define STACK_SIZE          16384

/* struct Watch */
#define WATCH_SIZE          80
#define WATCH_SOURCE        0
#define WATCH_COUNT         8
#define WATCH_COPY          16

        .section .note.pvh, "a", @note
        .balign 4
        .long 4, 8, 18          /* XEN_ELFNOTE_PHYS32_ENTRY */
        .asciz "Xen"
        .quad start

        .text
/*
 * The second processor starts here, in real mode, after run_spin() has copied
 * it to TRAMPOLINE.  It stays in ring 0 and takes no interrupts.
 */
        .code16
        .globl trampoline
trampoline:
        cli
        xorl %eax, %eax
        movw %ax, %ds
        lgdtl TRAMPOLINE + trampoline_gdt - trampoline
        movl $pml4, %eax
        movl %eax, %cr3
        movl $CR4_PAE, %eax
        movl %eax, %cr4
        movl $MSR_EFER, %ecx
        rdmsr
        orl $EFER_LME, %eax
        wrmsr
        movl %cr0, %eax
        andl $~CR0_CACHE_OFF, %eax
        orl $CR0_PE_PG, %eax
        movl %eax, %cr0
        ljmpl $SELECTOR_CODE, $second64
trampoline_gdt:
        .word gdt_pointer - gdt - 1
        .long gdt
        .if . - trampoline > TRAMPOLINE_SIZE
        .error "TRAMPOLINE_SIZE"
        .endif

        .code64
second64:
        movl $SELECTOR_DATA, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        movq $second_stack, %rsp
        call second_main
1:      cli
        hlt
        jmp 1b

        .code32
        .globl start
start:
        movl $pml4, %eax
        movl %eax, %cr3
        movl $CR4_PAE, %eax
        movl %eax, %cr4
        movl $MSR_EFER, %ecx
        rdmsr
        orl $EFER_LME, %eax
        wrmsr
        movl %cr0, %eax
        orl $CR0_PE_PG, %eax
        movl %eax, %cr0
        lgdt gdt_pointer
        ljmp $SELECTOR_CODE, $start64

        .code64
start64:
        movb $0xff, %al         /* mask all interrupts of the PICs */
        outb %al, $0x21
        outb %al, $0xa1
        movl $SELECTOR_DATA, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        movq $kernel_stack, %rsp
        call setup_tables
        lidt idt_pointer
        movl $SELECTOR_TSS, %eax
        ltr %ax
        pushq $SELECTOR_USER_DATA
        pushq $user_stack
        pushq $0x202            /* interrupts enabled */
        pushq $SELECTOR_USER_CODE
        pushq $main
        iretq

/* One stub of 16 bytes for each vector */
        .balign 16
        .globl stubs
stubs:
        .set vector, 0
        .rept 256
        .balign 16
        .if vector == VECTOR_UD
        jmp syscall
        .elseif vector < VECTOR_FIRST_IRQ
        pushq $vector
        jmp exception
        .else
        incq interrupts + 8 * vector
        jmp end_of_interrupt
        .endif
        .set vector, vector + 1
        .endr

/* The same for vectors with a watch; it is the vector of an interrupt */
        .balign 16
        .globl watch_stubs
watch_stubs:
        .set vector, 0
        .rept 256
        .balign 16
        pushq $vector
        jmp watch
        .set vector, vector + 1
        .endr

watch:
        pushq %rcx
        pushq %rsi
        pushq %rdi
        movq 24(%rsp), %rdi
        incq interrupts(, %rdi, 8)
        imulq $WATCH_SIZE, %rdi
        addq $watches, %rdi
        movq WATCH_SOURCE(%rdi), %rsi
        movq WATCH_COUNT(%rdi), %rcx
        addq $WATCH_COPY, %rdi
        cld
        rep movsl
        popq %rdi
        popq %rsi
        popq %rcx
        addq $8, %rsp

end_of_interrupt:
        pushq %rax
        movl $APIC_EOI, %eax
        movl $0, (%rax)
        popq %rax
        iretq

/*
 * On an unexpected exception, continue at fatal(vector, stack). The stack is
 * that of ring 0, so that fatal() can print its end. fatal() does not return.
 */
exception:
        popq %rdi
        movq %rsp, %rsi
        pushq $SELECTOR_USER_DATA
        pushq $user_stack
        pushq $0x2
        pushq $SELECTOR_USER_CODE
        pushq $fatal
        iretq

/*
 * Ring 3 requests a service by ud2, with its number in %eax:
 *   0  halt until there is an interrupt, unless *%rdi != %rsi or *%rdx != %rcx
 *   1  %eax = input of %ecx bytes from port %dx
 *   2  output of %ecx bytes of %edi to port %dx
 *   3  %edx and %eax = the halves of MSR %ecx
 *   4  MSR %ecx = %rdi; changes %rdx
 *   5  forget page table entries and, with changed types, cached memory
 */
syscall:
        addq $2, (%rsp)
        cmpl $1, %eax
        je 1f
        ja 2f
        cmpq %rsi, (%rdi)
        jne 3f
        cmpq %rcx, (%rdx)
        jne 3f
        sti
        hlt
        cli
3:      iretq

1:      xorl %eax, %eax
        cmpl $2, %ecx
        je 3f
        ja 4f
        inb %dx, %al
        iretq
3:      inw %dx, %ax
        iretq
4:      inl %dx, %eax
        iretq

2:      cmpl $3, %eax
        jae 8f
        movl %edi, %eax
        cmpl $2, %ecx
        je 6f
        ja 7f
        outb %al, %dx
        iretq
6:      outw %ax, %dx
        iretq
7:      outl %eax, %dx
        iretq

8:      je 3f
        cmpl $4, %eax
        ja 5f
        movl %edi, %eax
        movq %rdi, %rdx
        shrq $32, %rdx
        wrmsr
        iretq
3:      rdmsr
        iretq
5:      wbinvd
        movq %cr3, %rax
        movq %rax, %cr3
        iretq

        .data
        .balign 8
        .globl gdt
gdt:
        .quad 0
        .quad 0x00af9b000000ffff        /* SELECTOR_CODE */
        .quad 0x00cf93000000ffff        /* SELECTOR_DATA */
        .quad 0x00cff3000000ffff        /* SELECTOR_USER_DATA */
        .quad 0x00affb000000ffff        /* SELECTOR_USER_CODE */
        .quad 0, 0                      /* SELECTOR_TSS, by setup_tables() */
gdt_pointer:
        .word . - gdt - 1
        .quad gdt
idt_pointer:
        .word 256 * 16 - 1
        .quad idt

/*
 * The first 4 GiB and one GiB from 8 GiB on, mapped one to one in pages of
 * 2 MiB, for every ring
 */
        .balign 4096
pml4:
        .quad pdpt + 7
        .fill 511, 8, 0
pdpt:
        .quad page_directories + 7
        .quad page_directories + 0x1007
        .quad page_directories + 0x2007
        .quad page_directories + 0x3007
        .fill 4, 8, 0
        .quad page_directories + 0x4007
        .fill 503, 8, 0
        .globl page_directories
page_directories:
        .set page, 0
        .rept 2048
        .quad (page << 21) + 0x87
        .set page, page + 1
        .endr
        .set page, 4096
        .rept 512
        .quad (page << 21) + 0x87
        .set page, page + 1
        .endr

        .bss
        .balign 16
        .skip STACK_SIZE
        .globl kernel_stack
kernel_stack:
        .skip STACK_SIZE
user_stack:
        .skip STACK_SIZE
second_stack:

        .section .note.GNU-stack, "", @progbits
