//! The model under attack, as its callers see it: what it takes, and scores for rows.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::wire::{Call, Connection, Dialer, Listener, Reply, Shown};

/// Says how long the JSON before the tensors is (the binary extension).
pub const HEADER_LENGTH: &str = "inference-header-content-length";

/// A model's interface.
#[derive(Clone, Debug, PartialEq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// The version that answers.
    pub version: String,
    /// What it takes.
    pub inputs: Vec<Port>,
    /// What it answers.
    pub outputs: Vec<Port>,
}

/// An input or output.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Port {
    /// Name.
    pub name: String,
    /// As the protocol spells it: `FP32`.
    pub datatype: String,
    /// −1 for what is open.
    #[serde(rename = "shape")]
    pub dims: Vec<i64>,
}

impl Port {
    /// A whole shape: the first dimension is `rows` where it is open, others become 1.
    pub fn shape(&self, rows: usize) -> Vec<usize> {
        let dim = |(at, &dim): (usize, &i64)| match usize::try_from(dim) {
            Ok(dim) if dim > 0 => dim,
            _ if at == 0 => rows,
            _ => 1,
        };
        self.dims.iter().enumerate().map(dim).collect()
    }

    /// True where the first dimension is open: rows come together.
    pub fn takes_rows(&self) -> bool {
        self.dims.first().is_some_and(|&dim| dim < 1)
    }

    /// Zeros as they go over the wire; none where they are texts.
    pub fn zeros(&self, rows: usize) -> Option<Vec<u8>> {
        let count = self.shape(rows).into_iter().try_fold(1usize, usize::checked_mul)?;
        Some(vec![0; count.checked_mul(self.element_bytes()?)?])
    }

    /// Bytes of an element; none where they differ.
    pub fn element_bytes(&self) -> Option<usize> {
        Some(match self.datatype.as_str() {
            "BOOL" | "UINT8" | "INT8" => 1,
            "UINT16" | "INT16" | "FP16" | "BF16" => 2,
            "UINT32" | "INT32" | "FP32" => 4,
            "UINT64" | "INT64" | "FP64" => 8,
            _ => return None,
        })
    }
}

impl Interface {
    /// Reads the answer of `GET /v2/models/NAME`.
    pub fn read(metadata: &Value) -> Option<Self> {
        let ports = |name: &str| serde_json::from_value::<Vec<Port>>(metadata.get(name)?.clone()).ok();
        let versions = metadata.get("versions").and_then(Value::as_array);
        Some(Self {
            name: metadata.get("name")?.as_str()?.to_owned(),
            version: versions.and_then(|versions| versions.last()?.as_str()).unwrap_or("1").to_owned(),
            inputs: ports("inputs")?,
            outputs: ports("outputs")?,
        })
    }

    /// One request with zeros, as JSON and bytes behind it, with `dims` for what is open; none where it takes texts or is larger than
    /// `bytes_max`.
    pub fn request(&self, dims: &dyn Fn(usize) -> usize, bytes_max: usize) -> Option<(String, Vec<u8>)> {
        let (mut inputs, mut bytes) = (Vec::new(), 0usize);
        for input in &self.inputs {
            let shape: Vec<usize> = (0..)
                .zip(&input.dims)
                .map(|(at, &dim)| usize::try_from(dim).ok().filter(|dim| *dim > 0).unwrap_or_else(|| dims(at)))
                .collect();
            let count = shape.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim))?;
            let length = count.checked_mul(input.element_bytes()?)?;
            inputs.push(described(input, &shape, length));
            bytes = bytes.checked_add(length).filter(|bytes| *bytes <= bytes_max)?;
        }
        Some((json!({ "inputs": inputs }).to_string(), vec![0; bytes]))
    }
}

fn described(input: &Port, shape: &[usize], bytes: usize) -> Value {
    json!({
        "name": input.name, "datatype": input.datatype, "shape": shape,
        "parameters": { "binary_data_size": bytes },
    })
}

/// What an answer says of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// The largest.
    pub label: usize,
    /// Of each class, as far as it is said; empty where only the label is.
    pub of: Vec<(usize, f64)>,
}

impl Scores {
    fn dense(values: &[f64]) -> Option<Self> {
        let label = (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]))?;
        Some(Self { label, of: values.iter().copied().enumerate().collect() })
    }

    /// From `score:index[:label]` or `index`, the largest first (the classification extension).
    fn classified(texts: &[&str]) -> Option<Self> {
        let read = |text: &str| match text.split_once(':') {
            None => Some((text.trim().parse().ok()?, None)),
            Some((score, rest)) => Some((rest.split(':').next()?.trim().parse().ok()?, Some(score.parse().ok()?))),
        };
        let read: Vec<(usize, Option<f64>)> = texts.iter().map(|text| read(text)).collect::<Option<_>>()?;
        let of = read.iter().filter_map(|&(class, score)| Some((class, score?))).collect();
        Some(Self { label: read.first()?.0, of })
    }
}

/// Asks a model for scores of rows, as one caller.
pub struct Oracle {
    dialer: Dialer,
    to: Listener,
    shown: Shown,
    connection: Option<Connection>,
    model: Interface,
    /// Elements of a row.
    pub width: usize,
    /// Requests that were sent.
    pub requests: usize,
    /// Rows that were answered.
    pub rows: usize,
    /// The first refusal.
    pub refused: Option<String>,
}

/// Rows in a request, where the model takes several.
const ROWS_MAX: usize = 64;

impl Oracle {
    /// For a model with one input of FP32.
    pub fn new(dialer: &Dialer, to: &Listener, shown: &Shown, model: &Interface) -> Result<Self, String> {
        let [input] = model.inputs.as_slice() else {
            return Err(format!(
                "`{}` takes {} inputs; this attack is for models with one",
                model.name,
                model.inputs.len()
            ));
        };
        if input.datatype != "FP32" {
            return Err(format!("`{}` takes {}; this attack is for models of FP32", model.name, input.datatype));
        }
        let width = input.shape(1).iter().product();
        let (dialer, to, shown, model) = (dialer.clone(), to.clone(), shown.clone(), model.clone());
        Ok(Self { dialer, to, shown, connection: None, model, width, requests: 0, rows: 0, refused: None })
    }

    /// Scores of rows, in order; those after a refusal are missing.
    pub async fn ask(&mut self, rows: &[Vec<f32>]) -> Vec<Scores> {
        let together = if self.model.inputs.first().is_some_and(Port::takes_rows) { ROWS_MAX } else { 1 };
        let mut answers = Vec::with_capacity(rows.len());
        let mut chunk = together;
        while answers.len() < rows.len() {
            let end = rows.len().min(answers.len() + chunk);
            let reply = self.once(&rows[answers.len()..end]).await;
            match scores(&reply, end - answers.len()) {
                Some(scores) => answers.extend(scores),
                // What is too large at once may be small enough in parts: an attacker tries that.
                None if chunk > 1 && !matches!(reply.status(), 0 | 401 | 403 | 503) => chunk = (chunk / 8).max(1),
                None => {
                    self.refused.get_or_insert(reply.to_string());
                    break;
                }
            }
        }
        self.rows += answers.len();
        answers
    }

    async fn once(&mut self, rows: &[Vec<f32>]) -> Reply {
        let Some(input) = self.model.inputs.first() else { return Reply::Closed("no input".to_owned()) };
        let bytes: Vec<u8> = rows.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
        let header = json!({ "inputs": [described(input, &input.shape(rows.len()), bytes.len())] }).to_string();
        let path = format!("/v2/models/{}/infer", self.model.name);
        let length = header.len().to_string();
        let body = Bytes::from([header.into_bytes(), bytes].concat());
        self.requests += 1;
        let call = || Call::post(&path, body.clone()).with(HEADER_LENGTH, length.clone());
        if let Some(connection) = &mut self.connection {
            match connection.ask(call()).await {
                Reply::Closed(_) => self.connection = None,
                reply => return reply,
            }
        }
        match self.dialer.connect(&self.to, Some(&self.shown)).await {
            Ok(mut connection) => {
                let reply = connection.ask(call()).await;
                self.connection = Some(connection);
                reply
            }
            Err(error) => Reply::Closed(format!("no connection: {error}")),
        }
    }
}

/// Reads the first output as scores: numbers of each class, or the classification's texts.
fn scores(reply: &Reply, rows: usize) -> Option<Vec<Scores>> {
    if !reply.succeeded() {
        return None;
    }
    let answer = reply.json();
    let output = answer.pointer("/outputs/0")?;
    let data = output.get("data")?.as_array()?;
    let each = data.len().checked_div(rows).filter(|&each| each > 0 && each * rows == data.len())?;
    let row = |row: &[Value]| {
        if output.get("datatype")?.as_str()? == "BYTES" {
            Scores::classified(&row.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?)
        } else {
            Scores::dense(&row.iter().map(Value::as_f64).collect::<Option<Vec<_>>>()?)
        }
    };
    data.chunks(each).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(body: &Value) -> Reply {
        Reply::Answered { status: 200, body: Bytes::from(body.to_string()) }
    }

    #[test]
    fn scores_are_read_in_each_form() {
        let numbers = json!({ "outputs": [{ "datatype": "FP32", "data": [0.1, 0.7, 0.2, 0.9, 0.05, 0.05] }] });
        let read = scores(&reply(&numbers), 2).unwrap();
        assert_eq!((read[0].label, read[1].label, read[1].of[0]), (1, 0, (0, 0.9)));
        let texts = json!({ "outputs": [{ "datatype": "BYTES", "data": ["0.7:1:cat", "0.2:2"] }] });
        let read = scores(&reply(&texts), 1).unwrap();
        assert_eq!((read[0].label, read[0].of.as_slice()), (1, &[(1, 0.7), (2, 0.2)][..]));
        let labels = json!({ "outputs": [{ "datatype": "BYTES", "data": ["3", "4"] }] });
        let read = scores(&reply(&labels), 2).unwrap();
        assert_eq!((read[1].label, read[1].of.is_empty()), (4, true));
    }

    #[test]
    fn what_is_no_answer_has_no_scores() {
        for body in [
            json!({}),
            json!({ "outputs": [] }),
            json!({ "outputs": [{ "datatype": "FP32", "data": [] }] }),
            json!({ "outputs": [{ "datatype": "FP32", "data": [1, 2, 3] }] }),
            json!({ "outputs": [{ "datatype": "FP32", "data": ["a", "b"] }] }),
            json!({ "outputs": [{ "datatype": "BYTES", "data": ["x:y", "z"] }] }),
        ] {
            assert_eq!(scores(&reply(&body), 2), None, "{body}");
        }
        assert_eq!(scores(&Reply::Closed(String::new()), 1), None);
    }

    #[test]
    fn an_interface_is_read_and_asked_with_zeros() {
        let metadata = json!({
            "name": "m", "versions": ["1", "3"], "platform": "onnx",
            "inputs": [{ "name": "x", "datatype": "FP32", "shape": [-1, 2, -1] }],
            "outputs": [{ "name": "y", "datatype": "FP32", "shape": [-1, 10] }],
        });
        let model = Interface::read(&metadata).unwrap();
        assert_eq!((model.version.as_str(), model.inputs[0].shape(5)), ("3", vec![5, 2, 1]));
        let (header, bytes) = model.request(&|at| if at == 0 { 3 } else { 1 }, 1 << 20).unwrap();
        assert_eq!(bytes.len(), 24);
        assert!(header.contains("\"binary_data_size\":24"), "{header}");
        assert_eq!(model.request(&|_| usize::MAX, 1 << 20), None);
        assert_eq!(Interface::read(&json!({ "name": "m" })), None);
    }
}
