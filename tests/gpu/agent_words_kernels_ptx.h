// SPDX-License-Identifier: Apache-2.0
// Written by words_gpu_warp_regenerate.sh from agent_words_kernels.cu; do not edit.
#pragma once

namespace nvshmem_efa {

inline constexpr char kAgentKernelsPtx[] = R"PTX(
.version 7.0
.target sm_70
.address_size 64
	// .globl	fill_and_answer
.visible .entry fill_and_answer(
	.param .u64 fill_and_answer_param_0,
	.param .u64 fill_and_answer_param_1,
	.param .u64 fill_and_answer_param_2,
	.param .u64 fill_and_answer_param_3,
	.param .u64 fill_and_answer_param_4,
	.param .u64 fill_and_answer_param_5
)
.maxntid 1024, 1, 1
.minnctapersm 2
{
	.reg .pred 	%p<15>;
	.reg .b32 	%r<10>;
	.reg .b64 	%rd<30>;
	ld.param.u64 	%rd12, [fill_and_answer_param_0];
	ld.param.u64 	%rd13, [fill_and_answer_param_1];
	ld.param.u64 	%rd14, [fill_and_answer_param_2];
	ld.param.u64 	%rd15, [fill_and_answer_param_3];
	ld.param.u64 	%rd17, [fill_and_answer_param_4];
	ld.param.u64 	%rd16, [fill_and_answer_param_5];
	cvta.to.global.u64 	%rd1, %rd17;
	mov.u32 	%r2, %tid.x;
	setp.ne.s32 	%p3, %r2, 0;
	@%p3 bra 	$L__BB0_15;
	cvta.to.global.u64 	%rd20, %rd15;
	atom.global.sys.add.u32 	%r3, [%rd20], 1;
	// begin inline asm
	mov.u64 %rd18, %globaltimer;
	// end inline asm
	add.s64 	%rd2, %rd18, %rd16;
	cvt.u32.u64 	%r1, %rd13;
	shl.b32 	%r4, %r1, 3;
	mov.u64 	%rd21, -1;
	shl.b64 	%rd22, %rd21, %r4;
	not.b64 	%rd23, %rd22;
	setp.eq.s64 	%p4, %rd13, 8;
	selp.b64 	%rd3, -1, %rd23, %p4;
	mov.u32 	%r5, %ctaid.x;
	setp.eq.s32 	%p14, %r5, 0;
	cvta.to.global.u64 	%rd4, %rd12;
	mov.u64 	%rd29, 0;
$L__BB0_2:
	not.pred 	%p5, %p14;
	@%p5 bra 	$L__BB0_13;
	setp.eq.s32 	%p6, %r1, 2;
	@%p6 bra 	$L__BB0_6;
	setp.ne.s32 	%p7, %r1, 4;
	@%p7 bra 	$L__BB0_7;
	ld.volatile.global.u32 	%rd28, [%rd4];
	bra.uni 	$L__BB0_8;
$L__BB0_6:
	ld.volatile.global.u16 	%rd28, [%rd4];
	bra.uni 	$L__BB0_8;
$L__BB0_7:
	ld.volatile.global.u64 	%rd28, [%rd4];
$L__BB0_8:
	setp.eq.s64 	%p8, %rd28, %rd29;
	@%p8 bra 	$L__BB0_10;
	// begin inline asm
	st.release.sys.global.u64 [%rd14], %rd28;
	// end inline asm
	mov.u64 	%rd29, %rd28;
$L__BB0_10:
	setp.eq.s64 	%p9, %rd28, %rd3;
	@%p9 bra 	$L__BB0_12;
	// begin inline asm
	mov.u64 %rd26, %globaltimer;
	// end inline asm
	setp.le.u64 	%p11, %rd26, %rd2;
	mov.pred 	%p14, -1;
	@%p11 bra 	$L__BB0_2;
$L__BB0_12:
	mov.u32 	%r6, 1;
	st.volatile.global.u32 	[%rd1], %r6;
$L__BB0_13:
	ld.volatile.global.u32 	%r7, [%rd1];
	setp.ne.s32 	%p12, %r7, 0;
	@%p12 bra 	$L__BB0_15;
$L__BB0_14:
	mov.u32 	%r8, 200;
	// begin inline asm
	nanosleep.u32 %r8;
	// end inline asm
	ld.volatile.global.u32 	%r9, [%rd1];
	setp.eq.s32 	%p13, %r9, 0;
	@%p13 bra 	$L__BB0_14;
$L__BB0_15:
	bar.sync 	0;
	ret;
}
	// .globl	add_locally
.visible .entry add_locally(
	.param .u64 add_locally_param_0,
	.param .u64 add_locally_param_1
)
{
	.reg .pred 	%p<6>;
	.reg .b64 	%rd<19>;
	ld.param.u64 	%rd10, [add_locally_param_0];
	ld.param.u64 	%rd9, [add_locally_param_1];
	cvta.to.global.u64 	%rd1, %rd10;
	setp.eq.s64 	%p1, %rd9, 0;
	@%p1 bra 	$L__BB1_7;
	add.s64 	%rd11, %rd9, -1;
	and.b64  	%rd2, %rd9, 3;
	setp.lt.u64 	%p2, %rd11, 3;
	@%p2 bra 	$L__BB1_4;
	sub.s64 	%rd17, %rd2, %rd9;
$L__BB1_3:
	atom.global.add.u64 	%rd12, [%rd1], 1;
	atom.global.add.u64 	%rd13, [%rd1], 1;
	atom.global.add.u64 	%rd14, [%rd1], 1;
	atom.global.add.u64 	%rd15, [%rd1], 1;
	add.s64 	%rd17, %rd17, 4;
	setp.ne.s64 	%p3, %rd17, 0;
	@%p3 bra 	$L__BB1_3;
$L__BB1_4:
	setp.eq.s64 	%p4, %rd2, 0;
	@%p4 bra 	$L__BB1_7;
	neg.s64 	%rd18, %rd2;
$L__BB1_6:
	.pragma "nounroll";
	atom.global.add.u64 	%rd16, [%rd1], 1;
	add.s64 	%rd18, %rd18, 1;
	setp.ne.s64 	%p5, %rd18, 0;
	@%p5 bra 	$L__BB1_6;
$L__BB1_7:
	ret;
}
)PTX";

}  // namespace nvshmem_efa
