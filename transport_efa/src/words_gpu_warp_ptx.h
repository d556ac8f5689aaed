// SPDX-License-Identifier: Apache-2.0
// Written by words_gpu_warp_regenerate.sh from words_gpu_warp.cu; do not edit.
#pragma once

namespace nvshmem_efa {

inline constexpr char kGpuWarpPtx[] = R"PTX(
.version 7.0
.target sm_70
.address_size 64
	// .globl	nvshmem_efa_atomics_warp
.visible .entry nvshmem_efa_atomics_warp(
	.param .u64 nvshmem_efa_atomics_warp_param_0
)
.maxntid 32, 1, 1
.minnctapersm 1
{
	.reg .pred 	%p<45>;
	.reg .b16 	%rs<37>;
	.reg .f32 	%f<4>;
	.reg .b32 	%r<52>;
	.reg .f64 	%fd<4>;
	.reg .b64 	%rd<123>;
	ld.param.u64 	%rd32, [nvshmem_efa_atomics_warp_param_0];
	cvta.to.global.u64 	%rd1, %rd32;
	// begin inline asm
	ld.acquire.sys.global.u64 %rd33, [%rd32];
	// end inline asm
	add.s64 	%rd36, %rd32, 8;
	// begin inline asm
	ld.acquire.sys.global.u64 %rd117, [%rd36];
	// end inline asm
	mov.u32 	%r1, %tid.x;
	setp.ne.s32 	%p2, %r1, 0;
	@%p2 bra 	$L__BB0_2;
	add.s64 	%rd37, %rd32, 16;
	// begin inline asm
	st.release.sys.global.u64 [%rd37], %rd33;
	// end inline asm
$L__BB0_2:
	cvt.u64.u32 	%rd4, %r1;
	bra.uni 	$L__BB0_3;
$L__BB0_60:
	add.s64 	%rd117, %rd117, 1;
$L__BB0_3:
	and.b64  	%rd6, %rd117, 7;
	mov.u64 	%rd118, 0;
	@%p2 bra 	$L__BB0_8;
	// begin inline asm
	mov.u64 %rd40, %globaltimer;
	// end inline asm
	mul.lo.s64 	%rd41, %rd6, 1088;
	add.s64 	%rd42, %rd32, %rd41;
	add.s64 	%rd8, %rd42, 64;
	add.s64 	%rd9, %rd117, 1;
$L__BB0_5:
	// begin inline asm
	ld.acquire.sys.global.u64 %rd43, [%rd8];
	// end inline asm
	setp.eq.s64 	%p4, %rd43, %rd9;
	setp.eq.s64 	%p5, %rd43, -1;
	or.pred  	%p6, %p4, %p5;
	@%p6 bra 	$L__BB0_7;
	// begin inline asm
	mov.u64 %rd45, %globaltimer;
	// end inline asm
	sub.s64 	%rd46, %rd45, %rd40;
	setp.lt.u64 	%p7, %rd46, 200000;
	@%p7 bra 	$L__BB0_5;
$L__BB0_7:
	selp.b64 	%rd118, %rd43, -1, %p4;
$L__BB0_8:
	// begin inline asm
	mov.b64 {%r18,%r19}, %rd118;
	// end inline asm
	mov.u32 	%r22, 31;
	mov.u32 	%r50, 0;
	mov.u32 	%r24, -1;
	shfl.sync.idx.b32 	%r21|%p9, %r19, %r50, %r22, %r24;
	shfl.sync.idx.b32 	%r20|%p10, %r18, %r50, %r22, %r24;
	// begin inline asm
	mov.b64 %rd48, {%r20,%r21};
	// end inline asm
	bar.warp.sync 	-1;
	setp.eq.s64 	%p11, %rd48, -1;
	@%p11 bra 	$L__BB0_61;
	mul.lo.s64 	%rd52, %rd6, 1088;
	add.s64 	%rd53, %rd1, %rd52;
	mov.u64 	%rd119, 0;
	ld.volatile.global.u64 	%rd54, [%rd53+72];
	cvt.u32.u64 	%r2, %rd54;
	setp.ge.u32 	%p12, %r1, %r2;
	mov.u16 	%rs33, 0;
	mov.u16 	%rs34, %rs33;
	mov.u64 	%rd120, %rd119;
	mov.u64 	%rd121, %rd119;
	@%p12 bra 	$L__BB0_11;
	shl.b64 	%rd57, %rd4, 5;
	add.s64 	%rd58, %rd53, %rd57;
	ld.volatile.global.u64 	%rd121, [%rd58+128];
	ld.volatile.global.u64 	%rd120, [%rd58+136];
	ld.volatile.global.u64 	%rd119, [%rd58+144];
	ld.volatile.global.u64 	%rd59, [%rd58+152];
	cvt.u32.u64 	%r50, %rd59;
	shr.u64 	%rd60, %rd59, 32;
	cvt.u16.u64 	%rs34, %rd60;
	shr.u64 	%rd61, %rd59, 48;
	cvt.u16.u64 	%rs33, %rd61;
$L__BB0_11:
	setp.eq.s32 	%p13, %r2, 0;
	@%p13 bra 	$L__BB0_58;
	mul.lo.s64 	%rd62, %rd6, 320;
	add.s64 	%rd63, %rd32, %rd62;
	shl.b64 	%rd64, %rd4, 3;
	add.s64 	%rd65, %rd63, %rd64;
	add.s64 	%rd19, %rd65, 8832;
	cvt.u16.u64 	%rs5, %rd120;
	setp.eq.s16 	%p14, %rs33, 0;
	setp.ne.s32 	%p15, %r50, 2;
	or.pred  	%p1, %p14, %p15;
	cvt.u16.u64 	%rs6, %rd119;
	cvt.u32.u64 	%r5, %rd119;
	cvt.u32.u64 	%r6, %rd120;
	mov.b32 	%f1, %r6;
	mov.b64 	%fd1, %rd120;
	mov.u32 	%r51, 0;
	bra.uni 	$L__BB0_13;
$L__BB0_37:
	setp.eq.s32 	%p28, %r50, 4;
	@%p28 bra 	$L__BB0_42;
	setp.eq.s32 	%p29, %r50, 5;
	@%p29 bra 	$L__BB0_41;
	setp.ne.s32 	%p30, %r50, 7;
	@%p30 bra 	$L__BB0_47;
	// begin inline asm
	atom.acq_rel.sys.global.cas.b32 %r27, [%rd121], %r5, %r6;
	// end inline asm
	cvt.u64.u32 	%rd122, %r27;
	bra.uni 	$L__BB0_56;
$L__BB0_21:
	setp.eq.s32 	%p20, %r50, 4;
	@%p20 bra 	$L__BB0_26;
	setp.eq.s32 	%p21, %r50, 5;
	@%p21 bra 	$L__BB0_25;
	setp.ne.s32 	%p22, %r50, 7;
	@%p22 bra 	$L__BB0_31;
	// begin inline asm
	atom.acq_rel.sys.global.cas.b64 %rd122, [%rd121], %rd119, %rd120;
	// end inline asm
	bra.uni 	$L__BB0_56;
$L__BB0_46:
	mov.u32 	%r39, 0;
	// begin inline asm
	atom.acq_rel.sys.global.or.b32 %r38, [%rd121], %r39;
	// end inline asm
	cvt.u64.u32 	%rd122, %r38;
	bra.uni 	$L__BB0_56;
$L__BB0_43:
	@%p14 bra 	$L__BB0_45;
	// begin inline asm
	atom.acq_rel.sys.global.add.f32 %f2, [%rd121], %f1;
	// end inline asm
	mov.b32 	%r12, %f2;
	cvt.u64.u32 	%rd122, %r12;
	bra.uni 	$L__BB0_56;
$L__BB0_30:
	mov.u64 	%rd85, 0;
	// begin inline asm
	atom.acq_rel.sys.global.or.b64 %rd122, [%rd121], %rd85;
	// end inline asm
	bra.uni 	$L__BB0_56;
$L__BB0_27:
	@%p14 bra 	$L__BB0_29;
	// begin inline asm
	atom.acq_rel.sys.global.add.f64 %fd2, [%rd121], %fd1;
	// end inline asm
	mov.b64 	%rd122, %fd2;
	bra.uni 	$L__BB0_56;
$L__BB0_42:
	// begin inline asm
	atom.acq_rel.sys.global.or.b32 %r32, [%rd121], %r6;
	// end inline asm
	cvt.u64.u32 	%rd122, %r32;
	bra.uni 	$L__BB0_56;
$L__BB0_41:
	// begin inline asm
	atom.acq_rel.sys.global.xor.b32 %r30, [%rd121], %r6;
	// end inline asm
	cvt.u64.u32 	%rd122, %r30;
	bra.uni 	$L__BB0_56;
$L__BB0_47:
	// begin inline asm
	atom.acq_rel.sys.global.exch.b32 %r40, [%rd121], %r6;
	// end inline asm
	cvt.u64.u32 	%rd122, %r40;
	bra.uni 	$L__BB0_56;
$L__BB0_26:
	// begin inline asm
	atom.acq_rel.sys.global.or.b64 %rd122, [%rd121], %rd120;
	// end inline asm
	bra.uni 	$L__BB0_56;
$L__BB0_25:
	// begin inline asm
	atom.acq_rel.sys.global.xor.b64 %rd122, [%rd121], %rd120;
	// end inline asm
	bra.uni 	$L__BB0_56;
$L__BB0_31:
	// begin inline asm
	atom.acq_rel.sys.global.exch.b64 %rd122, [%rd121], %rd120;
	// end inline asm
	bra.uni 	$L__BB0_56;
$L__BB0_45:
	// begin inline asm
	atom.acq_rel.sys.global.add.u32 %r36, [%rd121], %r6;
	// end inline asm
	cvt.u64.u32 	%rd122, %r36;
	bra.uni 	$L__BB0_56;
$L__BB0_29:
	// begin inline asm
	atom.acq_rel.sys.global.add.u64 %rd122, [%rd121], %rd120;
	// end inline asm
	bra.uni 	$L__BB0_56;
$L__BB0_13:
	setp.ne.s32 	%p16, %r1, %r51;
	@%p16 bra 	$L__BB0_57;
	setp.eq.s16 	%p17, %rs34, 2;
	@%p17 bra 	$L__BB0_48;
	bra.uni 	$L__BB0_15;
$L__BB0_48:
	@%p1 bra 	$L__BB0_50;
	bra.uni 	$L__BB0_49;
$L__BB0_50:
	setp.eq.s32 	%p35, %r50, 7;
	@%p35 bra 	$L__BB0_54;
	bra.uni 	$L__BB0_51;
$L__BB0_54:
	// begin inline asm
	atom.acq_rel.sys.global.cas.b16 %rs36, [%rd121], %rs6, %rs5;
	// end inline asm
	bra.uni 	$L__BB0_55;
$L__BB0_15:
	setp.eq.s16 	%p18, %rs34, 4;
	@%p18 bra 	$L__BB0_32;
	bra.uni 	$L__BB0_16;
$L__BB0_32:
	setp.gt.s32 	%p27, %r50, 3;
	@%p27 bra 	$L__BB0_37;
	setp.eq.s32 	%p31, %r50, 0;
	@%p31 bra 	$L__BB0_46;
	setp.eq.s32 	%p32, %r50, 2;
	@%p32 bra 	$L__BB0_43;
	setp.eq.s32 	%p33, %r50, 3;
	@%p33 bra 	$L__BB0_36;
	bra.uni 	$L__BB0_47;
$L__BB0_36:
	// begin inline asm
	atom.acq_rel.sys.global.and.b32 %r34, [%rd121], %r6;
	// end inline asm
	cvt.u64.u32 	%rd122, %r34;
	bra.uni 	$L__BB0_56;
$L__BB0_49:
	// begin inline asm
	atom.acq_rel.sys.global.add.noftz.f16 %rs36, [%rd121], %rs5;
	// end inline asm
	bra.uni 	$L__BB0_55;
$L__BB0_16:
	setp.gt.s32 	%p19, %r50, 3;
	@%p19 bra 	$L__BB0_21;
	setp.eq.s32 	%p23, %r50, 0;
	@%p23 bra 	$L__BB0_30;
	setp.eq.s32 	%p24, %r50, 2;
	@%p24 bra 	$L__BB0_27;
	setp.eq.s32 	%p25, %r50, 3;
	@%p25 bra 	$L__BB0_20;
	bra.uni 	$L__BB0_31;
$L__BB0_20:
	// begin inline asm
	atom.acq_rel.sys.global.and.b64 %rd122, [%rd121], %rd120;
	// end inline asm
	bra.uni 	$L__BB0_56;
$L__BB0_51:
	mov.u16 	%rs19, 0;
	// begin inline asm
	atom.acq_rel.sys.global.cas.b16 %rs35, [%rd121], %rs19, %rs19;
	// end inline asm
$L__BB0_52:
	mov.u16 	%rs36, %rs35;
	setp.eq.s32 	%p36, %r50, 0;
	@%p36 bra 	$L__BB0_55;
	setp.eq.s32 	%p37, %r50, 5;
	setp.eq.s32 	%p38, %r50, 2;
	selp.b16 	%rs23, %rs36, 0, %p38;
	add.s16 	%rs24, %rs23, %rs5;
	and.b16  	%rs25, %rs36, %rs5;
	setp.eq.s32 	%p39, %r50, 3;
	selp.b16 	%rs26, %rs25, %rs24, %p39;
	or.b16  	%rs27, %rs36, %rs5;
	setp.eq.s32 	%p40, %r50, 4;
	selp.b16 	%rs28, %rs27, %rs26, %p40;
	xor.b16  	%rs29, %rs36, %rs5;
	selp.b16 	%rs22, %rs29, %rs28, %p37;
	// begin inline asm
	atom.acq_rel.sys.global.cas.b16 %rs35, [%rd121], %rs36, %rs22;
	// end inline asm
	setp.eq.s16 	%p41, %rs35, %rs36;
	@%p41 bra 	$L__BB0_55;
	bra.uni 	$L__BB0_52;
$L__BB0_55:
	cvt.u64.u16 	%rd122, %rs36;
$L__BB0_56:
	// begin inline asm
	st.relaxed.sys.global.u64 [%rd19], %rd122;
	// end inline asm
$L__BB0_57:
	bar.warp.sync 	-1;
	add.s32 	%r51, %r51, 1;
	setp.lt.u32 	%p42, %r51, %r2;
	@%p42 bra 	$L__BB0_13;
$L__BB0_58:
	setp.eq.s32 	%p43, %r1, 0;
	@%p43 bra 	$L__BB0_59;
	bra.uni 	$L__BB0_60;
$L__BB0_59:
	mul.lo.s64 	%rd105, %rd6, 320;
	add.s64 	%rd106, %rd32, %rd105;
	add.s64 	%rd103, %rd106, 8768;
	add.s64 	%rd104, %rd117, 1;
	// begin inline asm
	st.release.sys.global.u64 [%rd103], %rd104;
	// end inline asm
	bra.uni 	$L__BB0_60;
$L__BB0_61:
	@%p2 bra 	$L__BB0_63;
	add.s64 	%rd107, %rd32, 24;
	// begin inline asm
	st.release.sys.global.u64 [%rd107], %rd33;
	// end inline asm
$L__BB0_63:
	ret;
}
)PTX";

}  // namespace nvshmem_efa
