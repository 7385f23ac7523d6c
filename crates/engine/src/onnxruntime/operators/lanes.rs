//! Arithmetic on 16 float32 at once, one for each channel of a block.

use std::arch::x86_64::{
    __m512, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
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
