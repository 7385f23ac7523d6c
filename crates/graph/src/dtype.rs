//! ONNX element types, their sizes and names.

use std::fmt;

macro_rules! data_types {
    ($($(#[$doc:meta])* $name:ident = $onnx:literal, $bits:literal, $text:literal;)*) => {
        /// An ONNX tensor element type (`TensorProto.DataType`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum DataType { $($(#[$doc])* $name = $onnx,)* }

        impl DataType {
            /// Every element type, in the order of their ONNX numbers.
            pub const ALL: &[DataType] = &[$(DataType::$name,)*];

            /// From the number that ONNX files hold.
            pub fn from_onnx(number: i32) -> Option<Self> {
                match number { $($onnx => Some(Self::$name),)* _ => None }
            }

            /// Bits of one element; 0 for strings.
            pub fn bits(self) -> usize {
                match self { $(Self::$name => $bits,)* }
            }

            /// Lower-case name, as in NumPy and `ml_dtypes`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

data_types! {
    /// IEEE 754 binary32.
    Float32 = 1, 32, "float32";
    /// Unsigned 8-bit.
    UInt8 = 2, 8, "uint8";
    /// Signed 8-bit.
    Int8 = 3, 8, "int8";
    /// Unsigned 16-bit.
    UInt16 = 4, 16, "uint16";
    /// Signed 16-bit.
    Int16 = 5, 16, "int16";
    /// Signed 32-bit.
    Int32 = 6, 32, "int32";
    /// Signed 64-bit.
    Int64 = 7, 64, "int64";
    /// Byte strings.
    String = 8, 0, "string";
    /// One byte, 0 or 1.
    Bool = 9, 8, "bool";
    /// IEEE 754 binary16.
    Float16 = 10, 16, "float16";
    /// IEEE 754 binary64.
    Float64 = 11, 64, "float64";
    /// Unsigned 32-bit.
    UInt32 = 12, 32, "uint32";
    /// Unsigned 64-bit.
    UInt64 = 13, 64, "uint64";
    /// Two binary32.
    Complex64 = 14, 64, "complex64";
    /// Two binary64.
    Complex128 = 15, 128, "complex128";
    /// Upper half of a binary32.
    BFloat16 = 16, 16, "bfloat16";
    /// 8-bit float, 4 exponent bits, no infinities.
    Float8E4M3Fn = 17, 8, "float8e4m3fn";
    /// 8-bit float, 4 exponent bits, no negative zero.
    Float8E4M3Fnuz = 18, 8, "float8e4m3fnuz";
    /// 8-bit float, 5 exponent bits.
    Float8E5M2 = 19, 8, "float8e5m2";
    /// 8-bit float, 5 exponent bits, no negative zero.
    Float8E5M2Fnuz = 20, 8, "float8e5m2fnuz";
    /// Unsigned 4-bit, two a byte, first in the low half.
    UInt4 = 21, 4, "uint4";
    /// Signed 4-bit, two a byte, first in the low half.
    Int4 = 22, 4, "int4";
    /// 4-bit float, two a byte.
    Float4E2M1 = 23, 4, "float4e2m1";
    /// 8-bit power-of-two scale.
    Float8E8M0 = 24, 8, "float8e8m0";
    /// Unsigned 2-bit, four a byte.
    UInt2 = 25, 2, "uint2";
    /// Signed 2-bit, four a byte.
    Int2 = 26, 2, "int2";
}

impl DataType {
    /// The number that ONNX files hold.
    pub fn to_onnx(self) -> i32 {
        self as i32
    }

    /// Bytes of `count` elements as ONNX raw data; 0 for strings.
    pub fn byte_len(self, count: usize) -> usize {
        match self.bits() {
            bits @ (2 | 4) => count.div_ceil(8 / bits),
            bits => count * (bits / 8),
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
