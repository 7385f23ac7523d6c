//! Arithmetic on 16 float32 at once, one for each channel of a block.

use std::arch::x86_64::{
    __m512, _CMP_EQ_OQ, _CMP_GT_OQ, _CMP_LT_OQ, _mm512_add_ps, _mm512_cmp_ps_mask, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_mask_add_ps, _mm512_mask_mov_ps, _mm512_maskz_mov_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps,
    _mm512_roundscale_ps, _mm512_scalef_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps, _mm512_sub_ps,
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

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn mul(a: Lanes, b: Lanes) -> Lanes {
    _mm512_mul_ps(a, b)
}

/// Up to 16 numbers, and `fill` in lanes beyond.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_some(values: &[f32], fill: f32) -> Lanes {
    if let Some(block) = values.first_chunk() {
        return load(block);
    }
    let mut block = [fill; 16];
    block.iter_mut().zip(values).for_each(|(to, from)| *to = *from);
    load(&block)
}

/// As many lanes as there is room for.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_some(values: &mut [f32], lanes: Lanes) {
    if let Some(block) = values.first_chunk_mut() {
        return store(block, lanes);
    }
    let mut block = [0.0; 16];
    store(&mut block, lanes);
    values.iter_mut().zip(block).for_each(|(to, from)| *to = from);
}

/// The sum of all lanes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn total(lanes: Lanes) -> f64 {
    let mut block = [0.0; 16];
    store(&mut block, lanes);
    block.iter().copied().map(f64::from).sum()
}

/// The polynomial of these coefficients, the highest first.
#[inline]
#[target_feature(enable = "avx512f")]
fn polynomial<const COUNT: usize>(at: Lanes, coefficients: [f32; COUNT]) -> Lanes {
    let mut sum = zero();
    for c in coefficients {
        sum = fma(sum, at, splat(c));
    }
    sum
}

/// eˣ, to 2 units in the last place; what is too small for float32 is 0.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn exp(x: Lanes) -> Lanes {
    let whole = _mm512_roundscale_ps::<0>(mul(x, splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, the first with so few digits that products with whole numbers are exact (Cody and Waite 1980).
    let rest = fma(whole, splat(-0.693_359_4), x);
    let rest = fma(whole, splat(2.121_944_4e-4), rest);
    let taylor = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    _mm512_scalef_ps(polynomial(rest, taylor), whole)
}

/// The error function, to 1e-7: of minimax polynomials for small and large arguments.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn erf(x: Lanes) -> Lanes {
    let square = mul(x, x);
    let size = max(x, sub(zero(), x));
    let near = [-5.967_617e-4, 4.991_194_2e-3, -2.676_813_5e-2, 1.128_199_25e-1, -3.761_253_4e-1, 1.283_791_7e-1];
    let near = fma(polynomial(square, near), x, x);
    let far = [-1.728_534_7e-5, 3.831_971_3e-4, -3.883_964_4e-3, 2.425_462_2e-2, -1.067_778_8e-1, -6.348_467e-1];
    let far = fma(polynomial(size, far), size, splat(-1.287_175_1e-1));
    let far = sub(splat(1.0), exp(fma(far, size, sub(zero(), size))));
    let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, zero());
    let far = _mm512_mask_mov_ps(far, negative, sub(zero(), far));
    _mm512_mask_mov_ps(near, _mm512_cmp_ps_mask::<_CMP_GT_OQ>(size, splat(0.927_734_4)), far)
}
