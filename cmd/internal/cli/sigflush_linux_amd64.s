#include "textflag.h"

// The handler of SIGRTMIN: write(flushFD, &flushByte, 1).
TEXT flushHandler<>(SB), NOSPLIT|NOFRAME, $0
	MOVL	·flushFD(SB), DI
	LEAQ	·flushByte(SB), SI
	MOVL	$1, DX
	MOVL	$1, AX
	SYSCALL
	RET

// What it returns to: rt_sigreturn().
TEXT flushRestorer<>(SB), NOSPLIT|NOFRAME, $0
	MOVL	$15, AX
	SYSCALL
	INT	$3

// func flushHandlerPC() uintptr
TEXT ·flushHandlerPC(SB), NOSPLIT, $0-8
	LEAQ	flushHandler<>(SB), AX
	MOVQ	AX, ret+0(FP)
	RET

// func flushRestorerPC() uintptr
TEXT ·flushRestorerPC(SB), NOSPLIT, $0-8
	LEAQ	flushRestorer<>(SB), AX
	MOVQ	AX, ret+0(FP)
	RET
