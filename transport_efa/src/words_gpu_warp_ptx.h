// SPDX-License-Identifier: Apache-2.0
// Written by words_gpu_warp_regenerate.sh from words_gpu_warp.cu; do not edit.
#pragma once

namespace nvshmem_efa {

inline constexpr char kGpuWarpPtx[] = R"PTX(
.version 7.0
.target sm_70
.address_size 64
	// .globl	nvshmem_efa_resident_warp
.visible .entry nvshmem_efa_resident_warp(
	.param .u64 nvshmem_efa_resident_warp_param_0
)
.maxntid 32, 1, 1
.minnctapersm 1
{
	.reg .pred 	%p<43>;
	.reg .b16 	%rs<37>;
	.reg .f32 	%f<4>;
	.reg .b32 	%r<52>;
	.reg .f64 	%fd<4>;
	.reg .b64 	%rd<113>;
	ld.param.u64 	%rd28, [nvshmem_efa_resident_warp_param_0];
	cvta.to.global.u64 	%rd1, %rd28;
	mov.u32 	%r1, %tid.x;
	setp.ne.s32 	%p2, %r1, 0;
	@%p2 bra 	$L__BB0_2;
	mov.u64 	%rd30, 3562473067650040134;
	// begin inline asm
	st.release.sys.global.u64 [%rd28], %rd30;
	// end inline asm
$L__BB0_2:
	cvt.u64.u32 	%rd2, %r1;
	mov.u64 	%rd31, 0;
	mov.u64 	%rd107, %rd31;
	bra.uni 	$L__BB0_3;
$L__BB0_58:
	add.s64 	%rd107, %rd107, 1;
$L__BB0_3:
	and.b64  	%rd4, %rd107, 7;
	mov.u64 	%rd108, %rd31;
	@%p2 bra 	$L__BB0_6;
	mul.lo.s64 	%rd33, %rd4, 1088;
	add.s64 	%rd34, %rd28, %rd33;
	add.s64 	%rd5, %rd34, 64;
	add.s64 	%rd6, %rd107, 1;
$L__BB0_5:
	// begin inline asm
	ld.acquire.sys.global.u64 %rd108, [%rd5];
	// end inline asm
	setp.ne.s64 	%p4, %rd108, %rd6;
	setp.ne.s64 	%p5, %rd108, -1;
	and.pred  	%p6, %p4, %p5;
	@%p6 bra 	$L__BB0_5;
$L__BB0_6:
	// begin inline asm
	mov.b64 {%r18,%r19}, %rd108;
	// end inline asm
	mov.u32 	%r22, 31;
	mov.u32 	%r50, 0;
	mov.u32 	%r24, -1;
	shfl.sync.idx.b32 	%r21|%p7, %r19, %r50, %r22, %r24;
	shfl.sync.idx.b32 	%r20|%p8, %r18, %r50, %r22, %r24;
	// begin inline asm
	mov.b64 %rd38, {%r20,%r21};
	// end inline asm
	bar.warp.sync 	-1;
	setp.eq.s64 	%p9, %rd38, -1;
	@%p9 bra 	$L__BB0_59;
	mul.lo.s64 	%rd42, %rd4, 1088;
	add.s64 	%rd43, %rd1, %rd42;
	mov.u64 	%rd109, 0;
	ld.volatile.global.u64 	%rd44, [%rd43+72];
	cvt.u32.u64 	%r2, %rd44;
	setp.ge.u32 	%p10, %r1, %r2;
	mov.u16 	%rs33, 0;
	mov.u16 	%rs34, %rs33;
	mov.u64 	%rd110, %rd109;
	mov.u64 	%rd111, %rd109;
	@%p10 bra 	$L__BB0_9;
	shl.b64 	%rd47, %rd2, 5;
	add.s64 	%rd48, %rd43, %rd47;
	ld.volatile.global.u64 	%rd111, [%rd48+128];
	ld.volatile.global.u64 	%rd110, [%rd48+136];
	ld.volatile.global.u64 	%rd109, [%rd48+144];
	ld.volatile.global.u64 	%rd49, [%rd48+152];
	cvt.u32.u64 	%r50, %rd49;
	shr.u64 	%rd50, %rd49, 32;
	cvt.u16.u64 	%rs34, %rd50;
	shr.u64 	%rd51, %rd49, 48;
	cvt.u16.u64 	%rs33, %rd51;
$L__BB0_9:
	setp.eq.s32 	%p11, %r2, 0;
	@%p11 bra 	$L__BB0_56;
	mul.lo.s64 	%rd52, %rd4, 320;
	add.s64 	%rd53, %rd28, %rd52;
	shl.b64 	%rd54, %rd2, 3;
	add.s64 	%rd55, %rd53, %rd54;
	add.s64 	%rd15, %rd55, 8832;
	cvt.u16.u64 	%rs5, %rd110;
	setp.eq.s16 	%p12, %rs33, 0;
	setp.ne.s32 	%p13, %r50, 2;
	or.pred  	%p1, %p12, %p13;
	cvt.u16.u64 	%rs6, %rd109;
	cvt.u32.u64 	%r5, %rd109;
	cvt.u32.u64 	%r6, %rd110;
	mov.b32 	%f1, %r6;
	mov.b64 	%fd1, %rd110;
	mov.u32 	%r51, 0;
	bra.uni 	$L__BB0_11;
$L__BB0_35:
	setp.eq.s32 	%p26, %r50, 4;
	@%p26 bra 	$L__BB0_40;
	setp.eq.s32 	%p27, %r50, 5;
	@%p27 bra 	$L__BB0_39;
	setp.ne.s32 	%p28, %r50, 7;
	@%p28 bra 	$L__BB0_45;
	// begin inline asm
	atom.acq_rel.sys.global.cas.b32 %r27, [%rd111], %r5, %r6;
	// end inline asm
	cvt.u64.u32 	%rd112, %r27;
	bra.uni 	$L__BB0_54;
$L__BB0_19:
	setp.eq.s32 	%p18, %r50, 4;
	@%p18 bra 	$L__BB0_24;
	setp.eq.s32 	%p19, %r50, 5;
	@%p19 bra 	$L__BB0_23;
	setp.ne.s32 	%p20, %r50, 7;
	@%p20 bra 	$L__BB0_29;
	// begin inline asm
	atom.acq_rel.sys.global.cas.b64 %rd112, [%rd111], %rd109, %rd110;
	// end inline asm
	bra.uni 	$L__BB0_54;
$L__BB0_44:
	mov.u32 	%r39, 0;
	// begin inline asm
	atom.acq_rel.sys.global.or.b32 %r38, [%rd111], %r39;
	// end inline asm
	cvt.u64.u32 	%rd112, %r38;
	bra.uni 	$L__BB0_54;
$L__BB0_41:
	@%p12 bra 	$L__BB0_43;
	// begin inline asm
	atom.acq_rel.sys.global.add.f32 %f2, [%rd111], %f1;
	// end inline asm
	mov.b32 	%r12, %f2;
	cvt.u64.u32 	%rd112, %r12;
	bra.uni 	$L__BB0_54;
$L__BB0_28:
	mov.u64 	%rd75, 0;
	// begin inline asm
	atom.acq_rel.sys.global.or.b64 %rd112, [%rd111], %rd75;
	// end inline asm
	bra.uni 	$L__BB0_54;
$L__BB0_25:
	@%p12 bra 	$L__BB0_27;
	// begin inline asm
	atom.acq_rel.sys.global.add.f64 %fd2, [%rd111], %fd1;
	// end inline asm
	mov.b64 	%rd112, %fd2;
	bra.uni 	$L__BB0_54;
$L__BB0_40:
	// begin inline asm
	atom.acq_rel.sys.global.or.b32 %r32, [%rd111], %r6;
	// end inline asm
	cvt.u64.u32 	%rd112, %r32;
	bra.uni 	$L__BB0_54;
$L__BB0_39:
	// begin inline asm
	atom.acq_rel.sys.global.xor.b32 %r30, [%rd111], %r6;
	// end inline asm
	cvt.u64.u32 	%rd112, %r30;
	bra.uni 	$L__BB0_54;
$L__BB0_45:
	// begin inline asm
	atom.acq_rel.sys.global.exch.b32 %r40, [%rd111], %r6;
	// end inline asm
	cvt.u64.u32 	%rd112, %r40;
	bra.uni 	$L__BB0_54;
$L__BB0_24:
	// begin inline asm
	atom.acq_rel.sys.global.or.b64 %rd112, [%rd111], %rd110;
	// end inline asm
	bra.uni 	$L__BB0_54;
$L__BB0_23:
	// begin inline asm
	atom.acq_rel.sys.global.xor.b64 %rd112, [%rd111], %rd110;
	// end inline asm
	bra.uni 	$L__BB0_54;
$L__BB0_29:
	// begin inline asm
	atom.acq_rel.sys.global.exch.b64 %rd112, [%rd111], %rd110;
	// end inline asm
	bra.uni 	$L__BB0_54;
$L__BB0_43:
	// begin inline asm
	atom.acq_rel.sys.global.add.u32 %r36, [%rd111], %r6;
	// end inline asm
	cvt.u64.u32 	%rd112, %r36;
	bra.uni 	$L__BB0_54;
$L__BB0_27:
	// begin inline asm
	atom.acq_rel.sys.global.add.u64 %rd112, [%rd111], %rd110;
	// end inline asm
	bra.uni 	$L__BB0_54;
$L__BB0_11:
	setp.ne.s32 	%p14, %r1, %r51;
	@%p14 bra 	$L__BB0_55;
	setp.eq.s16 	%p15, %rs34, 2;
	@%p15 bra 	$L__BB0_46;
	bra.uni 	$L__BB0_13;
$L__BB0_46:
	@%p1 bra 	$L__BB0_48;
	bra.uni 	$L__BB0_47;
$L__BB0_48:
	setp.eq.s32 	%p33, %r50, 7;
	@%p33 bra 	$L__BB0_52;
	bra.uni 	$L__BB0_49;
$L__BB0_52:
	// begin inline asm
	atom.acq_rel.sys.global.cas.b16 %rs36, [%rd111], %rs6, %rs5;
	// end inline asm
	bra.uni 	$L__BB0_53;
$L__BB0_13:
	setp.eq.s16 	%p16, %rs34, 4;
	@%p16 bra 	$L__BB0_30;
	bra.uni 	$L__BB0_14;
$L__BB0_30:
	setp.gt.s32 	%p25, %r50, 3;
	@%p25 bra 	$L__BB0_35;
	setp.eq.s32 	%p29, %r50, 0;
	@%p29 bra 	$L__BB0_44;
	setp.eq.s32 	%p30, %r50, 2;
	@%p30 bra 	$L__BB0_41;
	setp.eq.s32 	%p31, %r50, 3;
	@%p31 bra 	$L__BB0_34;
	bra.uni 	$L__BB0_45;
$L__BB0_34:
	// begin inline asm
	atom.acq_rel.sys.global.and.b32 %r34, [%rd111], %r6;
	// end inline asm
	cvt.u64.u32 	%rd112, %r34;
	bra.uni 	$L__BB0_54;
$L__BB0_47:
	// begin inline asm
	atom.acq_rel.sys.global.add.noftz.f16 %rs36, [%rd111], %rs5;
	// end inline asm
	bra.uni 	$L__BB0_53;
$L__BB0_14:
	setp.gt.s32 	%p17, %r50, 3;
	@%p17 bra 	$L__BB0_19;
	setp.eq.s32 	%p21, %r50, 0;
	@%p21 bra 	$L__BB0_28;
	setp.eq.s32 	%p22, %r50, 2;
	@%p22 bra 	$L__BB0_25;
	setp.eq.s32 	%p23, %r50, 3;
	@%p23 bra 	$L__BB0_18;
	bra.uni 	$L__BB0_29;
$L__BB0_18:
	// begin inline asm
	atom.acq_rel.sys.global.and.b64 %rd112, [%rd111], %rd110;
	// end inline asm
	bra.uni 	$L__BB0_54;
$L__BB0_49:
	mov.u16 	%rs19, 0;
	// begin inline asm
	atom.acq_rel.sys.global.cas.b16 %rs35, [%rd111], %rs19, %rs19;
	// end inline asm
$L__BB0_50:
	mov.u16 	%rs36, %rs35;
	setp.eq.s32 	%p34, %r50, 0;
	@%p34 bra 	$L__BB0_53;
	setp.eq.s32 	%p35, %r50, 5;
	setp.eq.s32 	%p36, %r50, 2;
	selp.b16 	%rs23, %rs36, 0, %p36;
	add.s16 	%rs24, %rs23, %rs5;
	and.b16  	%rs25, %rs36, %rs5;
	setp.eq.s32 	%p37, %r50, 3;
	selp.b16 	%rs26, %rs25, %rs24, %p37;
	or.b16  	%rs27, %rs36, %rs5;
	setp.eq.s32 	%p38, %r50, 4;
	selp.b16 	%rs28, %rs27, %rs26, %p38;
	xor.b16  	%rs29, %rs36, %rs5;
	selp.b16 	%rs22, %rs29, %rs28, %p35;
	// begin inline asm
	atom.acq_rel.sys.global.cas.b16 %rs35, [%rd111], %rs36, %rs22;
	// end inline asm
	setp.eq.s16 	%p39, %rs35, %rs36;
	@%p39 bra 	$L__BB0_53;
	bra.uni 	$L__BB0_50;
$L__BB0_53:
	cvt.u64.u16 	%rd112, %rs36;
$L__BB0_54:
	// begin inline asm
	st.relaxed.sys.global.u64 [%rd15], %rd112;
	// end inline asm
$L__BB0_55:
	bar.warp.sync 	-1;
	add.s32 	%r51, %r51, 1;
	setp.lt.u32 	%p40, %r51, %r2;
	@%p40 bra 	$L__BB0_11;
$L__BB0_56:
	@%p2 bra 	$L__BB0_58;
	mul.lo.s64 	%rd95, %rd4, 320;
	add.s64 	%rd96, %rd28, %rd95;
	add.s64 	%rd93, %rd96, 8768;
	add.s64 	%rd94, %rd107, 1;
	// begin inline asm
	st.release.sys.global.u64 [%rd93], %rd94;
	// end inline asm
	bra.uni 	$L__BB0_58;
$L__BB0_59:
	@%p2 bra 	$L__BB0_61;
	add.s64 	%rd97, %rd28, 8;
	mov.u64 	%rd98, 7311983361510168365;
	// begin inline asm
	st.release.sys.global.u64 [%rd97], %rd98;
	// end inline asm
$L__BB0_61:
	ret;
}
)PTX";

}  // namespace nvshmem_efa
