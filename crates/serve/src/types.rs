//! Names of element types on the wire and in `config.pbtxt`.

use edgeward_graph::DataType;

use crate::proto::DataType as ConfigType;

macro_rules! wire_types {
    ($($ours:ident = $wire:literal, $config:ident;)*) => {
        /// The protocol's name of an element type; `UNKNOWN` for those that it has no name for.
        pub fn wire_type(dtype: DataType) -> &'static str {
            match dtype { $(DataType::$ours => $wire,)* _ => "UNKNOWN" }
        }

        /// The element type of a name of the protocol.
        pub fn from_wire_type(name: &str) -> Option<DataType> {
            match name { $($wire => Some(DataType::$ours),)* _ => None }
        }

        /// The type as `config.pbtxt` names it.
        pub fn config_type(dtype: DataType) -> ConfigType {
            match dtype { $(DataType::$ours => ConfigType::$config,)* _ => ConfigType::TypeInvalid }
        }

        /// The element type that `config.pbtxt` means.
        pub(crate) fn from_config_type(config: ConfigType) -> Option<DataType> {
            match config { $(ConfigType::$config => Some(DataType::$ours),)* _ => None }
        }
    };
}

wire_types! {
    Bool = "BOOL", TypeBool;
    UInt8 = "UINT8", TypeUint8;
    UInt16 = "UINT16", TypeUint16;
    UInt32 = "UINT32", TypeUint32;
    UInt64 = "UINT64", TypeUint64;
    Int8 = "INT8", TypeInt8;
    Int16 = "INT16", TypeInt16;
    Int32 = "INT32", TypeInt32;
    Int64 = "INT64", TypeInt64;
    Float16 = "FP16", TypeFp16;
    BFloat16 = "BF16", TypeBf16;
    Float32 = "FP32", TypeFp32;
    Float64 = "FP64", TypeFp64;
    String = "BYTES", TypeString;
}
