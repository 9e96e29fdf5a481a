# The guest: one boot sector that writes numbered records to the disk it was booted from, one after the other, for ever.
# It is 16-bit code and writes through the BIOS (int 13h, AH=43h), so there is nothing between it and QEMU's disk.
#
# A record is 4096 bytes, 1024 words of 32 bits: nonce, number, place, time-stamp counter (2), BIOS ticks, failures, check,
# then number ^ nonce in every other one. `check` takes the seven words before it in, each after a turn by five bits.
#
# On the serial port: `B` as it begins, `.` for each 64 records that are written, `x` for a write that failed (the record is
# written again), `#` when there is no room for more.
#
# What `guest.rs` writes into it stands at a fixed place, see `parameters`. Assembled:
#   as --32 -o boot.o boot.S && ld -m elf_i386 -Ttext 0x7c00 -e begin --oformat binary -o boot.bin boot.o
        .code16
        .set    RECORD, 0x8000                  # where a record is made, up to 0x9000
        .set    TICKS, 0x46c                    # the BIOS counts 18.2 a second there
        .set    SERIAL, 0x3f8

        .globl  begin
begin:  ljmp    $0, $at_zero                    # some BIOSes begin at 07c0:0000
at_zero:
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        sti
        cld
        movb    %dl, drive
        movl    first, %eax
        movl    %eax, place
        movb    $'B', %al
        call    say

record: movl    number, %eax
        cmpl    room, %eax
        jae     full
        xorl    nonce, %eax
        movw    $RECORD, %di
        movw    $1024, %cx
        rep stosl

again:  movw    $RECORD, %di
        movl    nonce, %eax
        stosl
        movl    number, %eax
        stosl
        movl    place, %eax
        stosl
        rdtsc
        stosl
        movl    %edx, %eax
        stosl
        movl    TICKS, %eax
        stosl
        movl    failures, %eax
        stosl
        movw    $RECORD, %si
        movw    $7, %cx
        xorl    %edx, %edx
check:  roll    $5, %edx
        lodsl
        addl    %eax, %edx
        loop    check
        movl    %edx, %eax
        stosl

        movw    $packet, %si
        movb    drive, %dl
        movw    $0x4300, %ax
        int     $0x13
        jc      failed
        incl    number
        addl    $8, place
        testb   $63, number
        jnz     record
        movb    $'.', %al
        call    say
        jmp     record

failed: incl    failures
        movb    $'x', %al
        call    say
        jmp     again

full:   movb    $'#', %al
        call    say
rest:   hlt
        jmp     rest

say:    movw    $SERIAL, %dx
        outb    %al, %dx
        ret

        .balign 4
number: .long   0
failures:
        .long   0
packet: .byte   16, 0                           # what int 13h is given: its size, then
        .word   8, RECORD, 0                    # sectors of 512 bytes, offset and segment of the record,
place:  .long   0, 0                            # and the sector on the disk
drive:  .byte   0

        .org    480
parameters:
nonce:  .long   0                               # whose records these are
first:  .long   0                               # the first record's sector of 512 bytes
room:   .long   0                               # records that there is room for
        .org    510
        .word   0xaa55
