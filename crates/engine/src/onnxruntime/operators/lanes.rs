//! Arithmetic on 16 float32 at once, one for each channel of a block.

use std::arch::x86_64::{
    __m512, _CMP_EQ_OQ, _CMP_GT_OQ, _CMP_LT_OQ, _mm512_add_ps, _mm512_cmp_ps_mask, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_mask_add_ps, _mm512_maskz_mov_ps, _mm512_max_ps, _mm512_min_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_storeu_ps, _mm512_sub_ps,
};

/// 16 channels of one pixel.
pub(super) type Block = [f32; 16];
/// A register.
pub(super) type Lanes = __m512;

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(block: &Block) -> Lanes {
    // SAFETY: the block has 16 numbers; any alignment will do.
    unsafe { _mm512_loadu_ps(block.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(block: &mut Block, lanes: Lanes) {
    // SAFETY: the block has 16 numbers; any alignment will do.
    unsafe { _mm512_storeu_ps(block.as_mut_ptr(), lanes) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn splat(value: f32) -> Lanes {
    _mm512_set1_ps(value)
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn zero() -> Lanes {
    _mm512_setzero_ps()
}

/// a · b + c, rounded once.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn fma(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
    _mm512_fmadd_ps(a, b, c)
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn add(a: Lanes, b: Lanes) -> Lanes {
    _mm512_add_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn sub(a: Lanes, b: Lanes) -> Lanes {
    _mm512_sub_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn max(a: Lanes, b: Lanes) -> Lanes {
    _mm512_max_ps(a, b)
}

/// `value` between the bounds; what is not a number stays so.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn clamp(value: Lanes, low: Lanes, high: Lanes) -> Lanes {
    // Of a comparison without answer, the second is the result.
    _mm512_min_ps(high, _mm512_max_ps(low, value))
}

/// `value` where `low` < `by` < `high`, else 0.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn between(value: Lanes, by: Lanes, low: Lanes, high: Lanes) -> Lanes {
    let inside = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(by, low) & _mm512_cmp_ps_mask::<_CMP_LT_OQ>(by, high);
    _mm512_maskz_mov_ps(inside, value)
}

/// Lanes where the two are equal, a bit each.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn equal(a: Lanes, b: Lanes) -> u16 {
    _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b)
}

/// a + b in the lanes of `mask`, else a.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn add_where(mask: u16, a: Lanes, b: Lanes) -> Lanes {
    _mm512_mask_add_ps(a, mask, a, b)
}
