#include "textflag.h"

// The handler of SIGRTMIN: write(flushFD, &flushByte, 1). It returns through the
// link register, which the kernel points to its own rt_sigreturn.
TEXT flushHandler<>(SB), NOSPLIT|NOFRAME, $0
	MOVW	·flushFD(SB), R0
	MOVD	$·flushByte(SB), R1
	MOVD	$1, R2
	MOVD	$64, R8
	SVC
	RET

// func flushHandlerPC() uintptr
TEXT ·flushHandlerPC(SB), NOSPLIT, $0-8
	MOVD	$flushHandler<>(SB), R0
	MOVD	R0, ret+0(FP)
	RET

// func flushRestorerPC() uintptr
TEXT ·flushRestorerPC(SB), NOSPLIT, $0-8
	MOVD	ZR, ret+0(FP)
	RET
