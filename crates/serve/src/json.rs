//! Inference requests and answers as JSON, with tensors read and written without a tree in between.
//!
//! `data` may stand before the datatype that says how to read it, so it is first cut out as raw text and then parsed
//! straight into the numbers' own type. The JSON parser does not see long lists at all.

mod cut;
mod flat;
mod number;

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use edgeward_graph::{DataType, Tensor};
use serde::Deserialize;

use crate::{
    core::{InferRequest, InferResponse, ModelRef, Parameter, Parameters, RequestedOutput, ServeError, ServeErrorKind},
    from_wire_type, wire_type,
};

use number::Number;

/// Levels of brackets within `data`.
const NESTING_MAX: usize = 32;

#[derive(Deserialize)]
#[serde(expecting = "an object with `inputs`")]
struct WireRequest<'a> {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: Option<Map>,
    #[serde(borrow, default)]
    inputs: Vec<WireInput<'a>>,
    #[serde(default)]
    outputs: Option<Vec<WireOutput>>,
}

#[derive(Deserialize)]
#[serde(expecting = "an input: an object with `name`, `shape` and `datatype`")]
struct WireInput<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    shape: Vec<i64>,
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    #[serde(default)]
    parameters: Option<Map>,
    #[serde(borrow, default)]
    data: Option<&'a serde_json::value::RawValue>,
}

#[derive(Deserialize)]
#[serde(expecting = "an output: an object with `name`")]
struct WireOutput {
    name: String,
    #[serde(default)]
    parameters: Option<Map>,
}

/// A request, and which of its outputs are wanted as binary.
pub struct Decoded {
    /// The request as the core takes it.
    pub request: InferRequest,
    /// All outputs as binary unless said otherwise per output.
    pub binary_default: bool,
    /// Per output, in the order of the request's outputs.
    pub binary: Vec<Option<bool>>,
}

fn refuse(text: impl Into<String>) -> ServeError {
    ServeError::new(ServeErrorKind::InvalidArgument, text)
}

/// Reads a request: `header` bytes of JSON, then the binary tensors in the order of the inputs.
pub fn decode(body: &Bytes, header: Option<usize>, model: ModelRef) -> Result<Decoded, ServeError> {
    let length = header.unwrap_or(body.len());
    if length > body.len() {
        return Err(refuse(format!("Inference-Header-Content-Length is {length}, the body has {} bytes", body.len())));
    }
    let (json, mut binary) = (body.slice(..length), body.slice(length..));
    if let Some(&first) = json.iter().find(|b| !b.is_ascii_whitespace()).filter(|&&b| b != b'{') {
        return Err(refuse(format!(
            "the request is not valid JSON for this: it begins with `{}`, expected an object with `inputs`",
            char::from(first).escape_default()
        )));
    }
    let cut = cut::cut(&json);
    let wire: WireRequest<'_> = serde_json::from_slice(&cut.rest).map_err(|e| {
        // What was cut out moved the places that errors name.
        let whole = cut.is_cut().then(|| serde_json::from_slice::<WireRequest<'_>>(&json).err()).flatten();
        refuse(format!("the request is not valid JSON: {}", whole.unwrap_or(e)))
    })?;
    if wire.inputs.is_empty() {
        return Err(refuse("the request has no `inputs`"));
    }
    let inputs = wire.inputs.iter().map(|i| Ok((i.name.to_string(), input(i, &cut, &mut binary)?)));
    let inputs = inputs.collect::<Result<Vec<_>, ServeError>>()?;
    if !binary.is_empty() {
        return Err(refuse(format!("{} bytes after the last binary input belong to no input", binary.len())));
    }
    let (parameters, none) = (wire.parameters.unwrap_or_default(), Map::new());
    let wanted = wire.outputs.unwrap_or_default();
    let (mut outputs, mut as_binary) = (Vec::with_capacity(wanted.len()), Vec::with_capacity(wanted.len()));
    for WireOutput { name, parameters } in wanted {
        let parameters = parameters.as_ref().unwrap_or(&none);
        let of = |e: ServeError| refuse(format!("output `{name}`: {}", e.message));
        let classes = whole_number(parameters, "classification").map_err(of)?.unwrap_or(0);
        as_binary.push(flag(parameters, "binary_data").map_err(of)?);
        outputs.push(RequestedOutput { classification: usize::try_from(classes).unwrap_or(usize::MAX), name });
    }
    let timeout = whole_number(&parameters, "timeout")?.filter(|&us| us > 0).map(Duration::from_micros);
    let request = InferRequest {
        model,
        id: wire.id.unwrap_or_default(),
        inputs,
        outputs,
        priority: whole_number(&parameters, "priority")?.map_or(0, |p| u32::try_from(p).unwrap_or(u32::MAX)),
        timeout,
        parameters: custom(&parameters),
        beside: false,
    };
    let binary_default = flag(&parameters, "binary_data_output")?.unwrap_or(false);
    Ok(Decoded { request, binary_default, binary: as_binary })
}

type Map = serde_json::Map<String, serde_json::Value>;

/// A parameter that counts something; clients send it as a number or as its digits.
fn whole_number(parameters: &Map, key: &str) -> Result<Option<u64>, ServeError> {
    match parameters.get(key) {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(value) => {
            let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
            number
                .map(Some)
                .ok_or_else(|| refuse(format!("parameter `{key}` is `{value}`, expected a whole number from 0 on")))
        }
    }
}

fn flag(parameters: &Map, key: &str) -> Result<Option<bool>, ServeError> {
    match parameters.get(key) {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(value) => value
            .as_bool()
            .map(Some)
            .ok_or_else(|| refuse(format!("parameter `{key}` is `{value}`, expected true or false"))),
    }
}

fn custom(parameters: &Map) -> Parameters {
    let known = ["priority", "timeout", "binary_data_output"];
    let convert = |v: &serde_json::Value| match v {
        serde_json::Value::Bool(b) => Some(Parameter::Bool(*b)),
        serde_json::Value::Number(n) => Some(n.as_i64().map_or(Parameter::Double(n.as_f64()?), Parameter::Int)),
        serde_json::Value::String(s) => Some(Parameter::String(s.clone())),
        _ => None,
    };
    let rest = parameters.iter().filter(|(k, _)| !known.contains(&k.as_str()));
    rest.filter_map(|(k, v)| Some((k.clone(), convert(v)?))).collect()
}

fn input(input: &WireInput<'_>, cut: &cut::Cut<'_>, binary: &mut Bytes) -> Result<Tensor, ServeError> {
    let of = |text: String| refuse(format!("input `{}`: {text}", input.name));
    let dtype = from_wire_type(&input.datatype).ok_or_else(|| of(format!("unknown datatype `{}`", input.datatype)))?;
    let shape = input.shape.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| of(format!("shape {:?} has a negative size", input.shape)))?;
    let none = Map::new();
    let size = whole_number(input.parameters.as_ref().unwrap_or(&none), "binary_data_size");
    if let Some(size) = size.map_err(|e| of(e.message))? {
        let size = usize::try_from(size).ok().filter(|&s| s <= binary.len());
        let size = size
            .ok_or_else(|| of(format!("`binary_data_size` reaches beyond the body ({} bytes left)", binary.len())))?;
        return from_binary(dtype, shape, binary.split_to(size)).map_err(of);
    }
    let Some(data) = input.data else { return Err(of("has neither `data` nor `binary_data_size`".to_owned())) };
    from_json(dtype, shape, cut.whole(data.get())).map_err(of)
}

/// A tensor of raw bytes; strings carry their lengths as 4 little-endian bytes each.
pub fn from_binary(dtype: DataType, shape: Vec<usize>, mut bytes: Bytes) -> Result<Tensor, String> {
    if dtype != DataType::String {
        return Tensor::from_raw(dtype, shape, bytes).map_err(|e| e.to_string());
    }
    let mut values = Vec::new();
    while !bytes.is_empty() {
        let length = bytes.first_chunk::<4>().map(|b| u32::from_le_bytes(*b) as usize);
        let length = length.filter(|&l| l <= bytes.len() - 4);
        let length = length.ok_or_else(|| format!("string {} reaches beyond its data", values.len()))?;
        values.push(bytes.slice(4..4 + length));
        bytes = bytes.slice(4 + length..);
    }
    Tensor::from_strings(shape, values).map_err(|e| e.to_string())
}

/// The raw bytes of a tensor, strings with their lengths before them.
pub fn to_binary(tensor: &Tensor) -> Bytes {
    match (tensor.raw(), tensor.strings()) {
        (Some(raw), _) => raw.clone(),
        (None, strings) => {
            let mut out = Vec::new();
            for s in strings.unwrap_or_default() {
                out.extend_from_slice(&(s.len() as u32).to_le_bytes());
                out.extend_from_slice(s);
            }
            out.into()
        }
    }
}

fn from_json(dtype: DataType, shape: Vec<usize>, text: &[u8]) -> Result<Tensor, String> {
    fn numbers<T: edgeward_graph::Element + Send + Sync>(
        shape: Vec<usize>,
        text: &[u8],
        value: impl Fn(Number, &[u8]) -> Option<T> + Sync,
    ) -> Result<Tensor, String> {
        let parse = |b: &[u8]| number::number(b).and_then(|n| Some((value(n, b)?, n.length)));
        let values = match flat::elements(text, parse) {
            Some(values) => values,
            None => scan(text, &shape, T::DTYPE, parse)?,
        };
        Tensor::from_vec(shape, values).map_err(|e| e.to_string())
    }
    macro_rules! integers {
        ($type:ty) => {
            numbers::<$type>(shape, text, |n, b| <$type>::try_from(n.integer(b)?).ok())
        };
    }
    match dtype {
        // What is too large for the type would become infinite.
        DataType::Float32 => numbers::<f32>(shape, text, Number::single),
        DataType::Float64 => numbers::<f64>(shape, text, Number::double),
        DataType::Int8 => integers!(i8),
        DataType::Int16 => integers!(i16),
        DataType::Int32 => integers!(i32),
        DataType::Int64 => integers!(i64),
        DataType::UInt8 => integers!(u8),
        DataType::UInt16 => integers!(u16),
        DataType::UInt32 => integers!(u32),
        DataType::UInt64 => integers!(u64),
        DataType::Bool => {
            let values = scan(text, &shape, dtype, |b| match b {
                [b't', b'r', b'u', b'e', ..] => Some((true, 4)),
                [b'f', b'a', b'l', b's', b'e', ..] => Some((false, 5)),
                [b'0', ..] => Some((false, 1)),
                [b'1', ..] => Some((true, 1)),
                _ => None,
            })?;
            Tensor::from_bools(shape, values).map_err(|e| e.to_string())
        }
        DataType::String => {
            let mut values = Vec::new();
            let mut nesting = Nesting::default();
            strings(&serde_json::from_slice(text).map_err(|e| e.to_string())?, &mut values, &mut nesting)?;
            nesting.fits(&shape, values.len())?;
            Tensor::from_strings(shape, values).map_err(|e| e.to_string())
        }
        other => Err(format!("{} has no JSON form; send it as binary data", wire_type(other))),
    }
}

/// How lists lie within lists: all of one level must be equally long, and a nested `data` as its shape says.
#[derive(Default)]
struct Nesting {
    /// Sizes of the lists of each level, once one of it has ended.
    sizes: Vec<Option<usize>>,
    /// Of each list that is open: the elements before it, and its lists.
    open: Vec<(usize, usize)>,
}

impl Nesting {
    fn begin(&mut self, elements: usize) -> Result<(), String> {
        if self.open.len() == NESTING_MAX {
            return Err(format!("`data` nests deeper than {NESTING_MAX} levels"));
        }
        if let Some((_, lists)) = self.open.last_mut() {
            *lists += 1;
        }
        self.open.push((elements, 0));
        if self.sizes.len() < self.open.len() {
            self.sizes.push(None);
        }
        Ok(())
    }

    fn end(&mut self, elements: usize) -> Result<(), String> {
        let Some((before, lists)) = self.open.pop() else { return Ok(()) };
        let level = self.open.len();
        let inner: usize = self.sizes.get(level + 1..).unwrap_or_default().iter().map(|s| s.unwrap_or(0)).product();
        let mixed = lists > 0 && lists.checked_mul(inner) != Some(elements - before);
        let size = if lists > 0 { lists } else { elements - before };
        // A list without elements beside lists of elements is shorter than they are.
        let known = self.sizes.get_mut(level).map(|known| *known.get_or_insert(size));
        if mixed || known != Some(size) {
            return Err(format!(
                "`data` is ragged: before element {elements} a list ends that is not as long as the others of its level; send equal lists, or one flat list"
            ));
        }
        Ok(())
    }

    /// A flat list fits any shape.
    fn fits(&self, shape: &[usize], elements: usize) -> Result<(), String> {
        let sizes: Vec<usize> = self.sizes.iter().map(|size| size.unwrap_or(0)).collect();
        if sizes.len() > 1 && elements > 0 && sizes != shape {
            return Err(format!(
                "`data` is nested as {sizes:?}, its shape is {shape:?}; make them equal, or send a flat list"
            ));
        }
        Ok(())
    }
}

/// Every element of a flat or nested list, in order. The brackets of the text match, nothing else is known of it.
fn scan<T>(
    text: &[u8],
    shape: &[usize],
    dtype: DataType,
    parse: impl Fn(&[u8]) -> Option<(T, usize)>,
) -> Result<Vec<T>, String> {
    if text.first() != Some(&b'[') {
        return Err(format!("`data` is `{}`, expected a list", excerpt(text)));
    }
    let room = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).unwrap_or(0).min(text.len() / 2);
    let (mut values, mut rest, mut nesting) = (Vec::with_capacity(room), text, Nesting::default());
    // Whether a value has just ended, so that a comma or a bracket must follow; whether a comma has just been.
    let (mut ended, mut comma) = (false, false);
    while let Some((&byte, tail)) = rest.split_first() {
        match byte {
            b',' if ended => (ended, comma, rest) = (false, true, tail),
            b']' if !comma && !nesting.open.is_empty() => {
                nesting.end(values.len())?;
                (ended, rest) = (true, tail);
            }
            b'[' if !ended => {
                nesting.begin(values.len())?;
                (comma, rest) = (false, tail);
            }
            b' ' | b'\t' | b'\n' | b'\r' => rest = tail,
            _ => {
                let parsed = parse(rest).filter(|(_, n)| {
                    rest.get(*n).is_none_or(|b| matches!(b, b',' | b']' | b' ' | b'\t' | b'\n' | b'\r'))
                });
                let Some((value, length)) = parsed.filter(|_| !ended) else {
                    let (at, text, wanted) = (values.len(), excerpt(rest), wire_type(dtype));
                    return Err(match ended {
                        true => format!("after element {} stands `{text}`, expected a comma", at.saturating_sub(1)),
                        false => format!("element {at} is `{text}`, expected {wanted}"),
                    });
                };
                values.push(value);
                (ended, comma, rest) = (true, false, rest.get(length..).unwrap_or_default());
            }
        }
    }
    nesting.fits(shape, values.len())?;
    Ok(values)
}

/// The beginning of a text, up to the next comma or bracket.
fn excerpt(text: &[u8]) -> String {
    let end = text.iter().skip(1).position(|b| matches!(b, b',' | b']')).map_or(text.len(), |n| n + 1).min(40);
    String::from_utf8_lossy(text.get(..end).unwrap_or_default()).into_owned()
}

fn strings(value: &serde_json::Value, out: &mut Vec<Bytes>, nesting: &mut Nesting) -> Result<(), String> {
    match value {
        serde_json::Value::Array(items) => {
            nesting.begin(out.len())?;
            items.iter().try_for_each(|item| strings(item, out, nesting))?;
            nesting.end(out.len())
        }
        serde_json::Value::String(text) => {
            out.push(Bytes::copy_from_slice(text.as_bytes()));
            Ok(())
        }
        other => Err(format!("element {} is `{other}`, expected a string", out.len())),
    }
}

/// The JSON part of an answer and the binary tensors after it.
pub fn encode(response: &InferResponse, binary: impl Fn(usize) -> bool) -> Result<(Vec<u8>, Vec<Bytes>), ServeError> {
    let mut json = Vec::with_capacity(256);
    let mut tail = Vec::new();
    let text = |json: &mut Vec<u8>, s: &str| {
        // Writing into memory cannot fail.
        let _ = serde_json::to_writer(json, s);
    };
    json.push(b'{');
    if !response.id.is_empty() {
        json.extend_from_slice(b"\"id\":");
        text(&mut json, &response.id);
        json.push(b',');
    }
    json.extend_from_slice(b"\"model_name\":");
    text(&mut json, &response.model_name);
    json.extend_from_slice(format!(",\"model_version\":\"{}\"", response.model_version).as_bytes());
    if !response.parameters.is_empty() {
        json.extend_from_slice(b",\"parameters\":");
        parameters(&mut json, &response.parameters);
    }
    json.extend_from_slice(b",\"outputs\":[");
    for (index, (name, tensor)) in response.outputs.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        json.extend_from_slice(b"{\"name\":");
        text(&mut json, name);
        let head = format!(",\"datatype\":\"{}\",\"shape\":{:?}", wire_type(tensor.dtype()), tensor.shape());
        json.extend_from_slice(head.as_bytes());
        if binary(index) {
            let bytes = to_binary(tensor);
            json.extend_from_slice(format!(",\"parameters\":{{\"binary_data_size\":{}}}}}", bytes.len()).as_bytes());
            tail.push(bytes);
        } else {
            json.extend_from_slice(b",\"data\":");
            data(&mut json, tensor).map_err(|e| refuse(format!("output `{name}`: {e}")))?;
            json.push(b'}');
        }
    }
    json.extend_from_slice(b"]}");
    Ok((json, tail))
}

/// Parameters of an answer. A number that JSON cannot hold becomes null.
fn parameters(json: &mut Vec<u8>, parameters: &Parameters) {
    let one = |parameter: &Parameter| match parameter {
        Parameter::Bool(v) => (*v).into(),
        Parameter::Int(v) => (*v).into(),
        Parameter::Double(v) => (*v).into(),
        Parameter::String(v) => v.as_str().into(),
    };
    let object: Map = parameters.iter().map(|(name, value)| (name.clone(), one(value))).collect();
    // Writing into memory cannot fail.
    let _ = serde_json::to_writer(json, &object);
}

/// A tensor's elements as a flat JSON list; none where JSON cannot hold them.
pub(crate) fn list(tensor: &Tensor) -> Option<String> {
    let mut json = Vec::new();
    data(&mut json, tensor).ok()?;
    String::from_utf8(json).ok()
}

fn data(json: &mut Vec<u8>, tensor: &Tensor) -> Result<(), String> {
    fn list<T: Copy>(json: &mut Vec<u8>, values: &[T], mut one: impl FnMut(&mut Vec<u8>, T)) {
        json.push(b'[');
        for (index, &value) in values.iter().enumerate() {
            if index > 0 {
                json.push(b',');
            }
            one(json, value);
        }
        json.push(b']');
    }
    macro_rules! integers {
        ($type:ty) => {{
            let mut buffer = itoa::Buffer::new();
            let values = tensor.values::<$type>().map_err(|e| e.to_string())?;
            list(json, &values, |json, v| json.extend_from_slice(buffer.format(v).as_bytes()))
        }};
    }
    macro_rules! floats {
        ($type:ty) => {{
            let mut buffer = zmij::Buffer::new();
            let values = tensor.values::<$type>().map_err(|e| e.to_string())?;
            if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                return Err(format!("element {i} is {}, which JSON cannot hold; ask for binary data", values[i]));
            }
            list(json, &values, |json, v| json.extend_from_slice(buffer.format_finite(v).as_bytes()))
        }};
    }
    match tensor.dtype() {
        DataType::Float32 => floats!(f32),
        DataType::Float64 => floats!(f64),
        DataType::Int8 => integers!(i8),
        DataType::Int16 => integers!(i16),
        DataType::Int32 => integers!(i32),
        DataType::Int64 => integers!(i64),
        DataType::UInt8 => integers!(u8),
        DataType::UInt16 => integers!(u16),
        DataType::UInt32 => integers!(u32),
        DataType::UInt64 => integers!(u64),
        DataType::Bool => {
            let raw = tensor.raw().map(|r| r.as_ref()).unwrap_or_default();
            list(json, raw, |json, v| json.extend_from_slice(if v == 0 { b"false" } else { b"true" }));
        }
        DataType::String => {
            let text = |(i, bytes)| {
                let refuse = |_| format!("element {i} is not UTF-8, which JSON cannot hold; ask for binary data");
                std::str::from_utf8(bytes).map_err(refuse)
            };
            let strings = tensor.strings().unwrap_or_default().iter().map(AsRef::as_ref).enumerate();
            let texts = strings.map(text).collect::<Result<Vec<&str>, String>>()?;
            serde_json::to_writer(json, &texts).map_err(|e| e.to_string())?;
        }
        other => return Err(format!("{} has no JSON form; ask for binary data", wire_type(other))),
    }
    Ok(())
}
