//! Spans for a collector: one per request, with its time in the queue and in the engine as children.

use std::time::Duration;

use opentelemetry::{
    Context, KeyValue,
    trace::{
        Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
        Tracer as _, TracerProvider as _,
    },
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider},
};

use super::{TelemetryError, Trace};

/// Spans that may wait for the collector; more are dropped.
const QUEUE_MAX: usize = 8192;
/// A span waits at most so long for others to travel with.
const DELAY: Duration = Duration::from_millis(500);
/// Longest wait for a collector's answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The exporter: a thread of its own that sends what a bounded queue holds.
pub(super) struct Otlp {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Otlp {
    /// Prepares to send to a collector, which need not be there. Must run inside a Tokio runtime.
    pub(super) fn start(endpoint: &str) -> Result<Self, TelemetryError> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(TIMEOUT).build();
        let exporter =
            exporter.map_err(|e| TelemetryError::Otlp { endpoint: endpoint.to_owned(), reason: e.to_string() })?;
        let config = BatchConfigBuilder::default().with_max_queue_size(QUEUE_MAX).with_scheduled_delay(DELAY).build();
        let resource = Resource::builder().with_service_name(crate::SERVER_NAME);
        let resource = resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(config).build())
            // What comes here was sampled already.
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource)
            .build();
        let tracer = provider.tracer(crate::SERVER_NAME);
        Ok(Self { provider, tracer })
    }

    pub(super) fn record(&self, trace: &Trace<'_>) {
        let parent = trace.parent.clone().map_or_else(Context::new, |p| Context::new().with_remote_span_context(p));
        let (times, end) = (trace.times(), trace.at + trace.took);
        let mut attributes = vec![KeyValue::new("model.name", trace.model.to_owned())];
        if !trace.id.is_empty() {
            attributes.push(KeyValue::new("request.id", trace.id.to_owned()));
        }
        if let Some(batch) = trace.batch {
            attributes.push(KeyValue::new("request.batch_size", i64::try_from(batch).unwrap_or(i64::MAX)));
        }
        if let Ok(response) = trace.result {
            let version = i64::try_from(response.model_version).unwrap_or(i64::MAX);
            attributes.push(KeyValue::new("model.version", version));
        }
        let builder = self.tracer.span_builder(format!("infer {}", trace.model));
        let mut span = builder
            .with_kind(SpanKind::Server)
            .with_start_time(trace.at)
            .with_attributes(attributes)
            .start_with_context(&self.tracer, &parent);
        match trace.result {
            Ok(_) => {
                let within = parent.with_remote_span_context(span.span_context().clone());
                let computing = trace.at + times.queue;
                let computed = computing + times.input + times.infer + times.output;
                for (name, from, to) in [("queue", trace.at, computing), ("compute", computing, computed)] {
                    let child = self.tracer.span_builder(name).with_start_time(from);
                    child.start_with_context(&self.tracer, &within).end_with_timestamp(to);
                }
            }
            Err(error) => {
                span.set_attribute(KeyValue::new("error.type", format!("{:?}", error.kind)));
                span.set_status(Status::error(error.message.clone()));
            }
        }
        span.end_with_timestamp(end);
    }

    /// Sends what waits; a collector that does not answer is not waited for longer than [`TIMEOUT`].
    pub(super) fn end(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(TIMEOUT) {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}

/// The caller's span, from the header `traceparent`; none where it is not well-formed.
/// Source: W3C Trace Context, section 3.2.
pub(super) fn parent(header: &str) -> Option<SpanContext> {
    let mut parts = header.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    // A later version may add parts, version 00 has none.
    let sized = (version.len(), trace.len(), span.len(), flags.len()) == (2, 32, 16, 2);
    let lower = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let whole = version != "ff" && (version != "00" || parts.next().is_none());
    if !sized || !whole || ![version, trace, span, flags].into_iter().all(lower) {
        return None;
    }
    let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
    let flags = if sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let context = SpanContext::new(trace, span, flags, true, TraceState::default());
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::parent;

    #[test]
    fn traceparent_is_read_as_the_standard_says() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let sampled = parent(&format!("00-{trace}-{span}-01")).unwrap();
        assert_eq!(
            (sampled.trace_id().to_string(), sampled.span_id().to_string()),
            (trace.to_owned(), span.to_owned())
        );
        assert!(sampled.is_sampled() && sampled.is_remote());
        assert!(!parent(&format!("00-{trace}-{span}-00")).unwrap().is_sampled());
        assert!(parent(&format!("01-{trace}-{span}-01-more")).is_some());
        for wrong in [
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{trace}-{span}"),
            String::new(),
        ] {
            assert!(parent(&wrong).is_none(), "{wrong}");
        }
    }
}
