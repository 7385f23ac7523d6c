//! A caller that was recognised, and what it is granted.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use edgeward_engine::Dim;
use edgeward_trust::{
    Action, Principal, Resource, TrustError,
    admission::{Demand, Limit, Permit, Refusal},
    audit::{Kind, Record, Sha256Digest, Ticket, Verdict},
    identity::Credential,
    policy::{Decision, LIMIT, Observed, Request, Terms},
    score::Signals,
};
use http::{Method, header::AUTHORIZATION, request::Parts};
use parking_lot::Mutex;

use super::{Gate, Peer, ahead::Ahead, familiar::Habit, harden, record, suspect::Suspect, undecided::Held};
use crate::{
    core::{InferRequest, InferResponse, ServeError, ServeErrorKind, Server},
    telemetry::App,
};

/// How long an answer waits for its record.
const RECORD_MAX: Duration = Duration::from_secs(10);

/// Why a call has no answer, as far as its caller may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Nobody who is believed was recognised.
    Unauthenticated,
    /// It may not. Whether what it asked for exists is not said.
    Denied,
    /// It has used what it may; the same call may succeed later, where a time is given.
    Limited(Option<Duration>),
    /// The decision, or its record, could not be made.
    Unavailable,
}

impl Refused {
    /// What callers are told.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Unauthenticated => "not authenticated",
            Self::Denied => "denied",
            Self::Limited(_) => "as much as is permitted has been used",
            Self::Unavailable => "cannot be decided at present",
        }
    }
}

/// What an open call is about, for deciding it again.
pub(crate) struct Asked {
    peer: Arc<Peer>,
    /// What was permitted last, and how large it was.
    last: Mutex<Option<(Action, Resource, u64)>>,
}

/// A call's caller.
pub(crate) struct Caller {
    gate: Arc<Gate>,
    principal: Arc<Principal>,
    /// Digest of its token, where it has one.
    token: Option<Sha256Digest>,
    asked: Arc<Asked>,
    decided: AtomicBool,
    /// What was granted before its message had come.
    ahead: Ahead,
}

/// What was granted: the terms, and the record that is still to be completed.
pub(crate) struct Grant {
    gate: Arc<Gate>,
    /// On what terms.
    terms: Terms,
    /// On what terms, where it turned out to be larger than it was said to be.
    larger: OnceLock<Terms>,
    /// Whose, for noise that is the same each time.
    principal: Arc<Principal>,
    /// What was permitted, and how large that was said to be.
    asked: Arc<Asked>,
    /// Who is told of its request, where it is to a model.
    suspect: Option<Suspect>,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    record: Option<Record>,
    ticket: Option<Result<Ticket, TrustError>>,
    permit: Option<Permit>,
    computed: Duration,
    classes: harden::Classes,
    /// The request could be read, and has so many bytes.
    read: Option<usize>,
}

impl Gate {
    /// Recognises the caller of a request.
    pub(super) async fn recognise(
        self: &Arc<Self>,
        parts: &Parts,
        peer: &Arc<Peer>,
        now: SystemTime,
    ) -> Result<Caller, TrustError> {
        let (principal, token) = match self.token(parts)? {
            None => (self.by_certificate(peer, now).await?, None),
            Some(credential) => {
                let url = self.url(parts);
                let connection = connection(peer, &parts.method, &url);
                let token = credential.token().map(|token| Sha256Digest::of(token.as_bytes()));
                let principal = self.identities.verify(credential, connection, now).resolve().await?;
                (Arc::new(principal), token)
            }
        };
        self.registry.revocations().check(&principal, now)?;
        let asked = Arc::new(Asked { peer: peer.clone(), last: Mutex::default() });
        let (decided, ahead) = (AtomicBool::new(false), Ahead::default());
        Ok(Caller { gate: self.clone(), principal, token, asked, decided, ahead })
    }

    /// The token of a request; none leaves the certificate.
    fn token<'a>(&self, parts: &'a Parts) -> Result<Option<Credential<'a>>, TrustError> {
        let wrong = |text: &str| Err(TrustError::new(edgeward_trust::ErrorKind::Unverified, text));
        let mut values = parts.headers.get_all(AUTHORIZATION).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return wrong("`Authorization` is there twice");
        }
        let split = value.to_str().ok().and_then(|value| value.split_once(' '));
        let Some((scheme, token)) = split else { return wrong("`Authorization` has no scheme and token") };
        let token = token.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Ok(Some(Credential::Bearer(token)));
        }
        if !scheme.eq_ignore_ascii_case("dpop") {
            return wrong("`Authorization` is of a scheme that is not spoken here; expected `Bearer` or `DPoP`");
        }
        match proof(parts)? {
            Some(proof) => Ok(Some(Credential::Dpop { token, proof })),
            None => wrong("`Authorization: DPoP` comes without the header `DPoP`"),
        }
    }

    async fn by_certificate(&self, peer: &Peer, now: SystemTime) -> Result<Arc<Principal>, TrustError> {
        if peer.certificates.is_empty() {
            let text = "neither a token nor a client certificate";
            return Err(TrustError::new(edgeward_trust::ErrorKind::Unverified, text));
        }
        if let Some(principal) = peer.principal(now) {
            return Ok(principal);
        }
        let connection = connection(peer, &Method::GET, "");
        let principal = self.identities.verify(Credential::Certificate, connection, now).resolve().await?;
        let principal = Arc::new(principal);
        peer.verified(principal.clone(), now);
        Ok(principal)
    }

    /// The address of a request as its client sees it; empty where it names another server.
    pub(super) fn url(&self, parts: &Parts) -> String {
        let host = parts.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
        let Some(authority) = parts.uri.authority().map(|a| a.as_str()).or(host) else { return String::new() };
        if !self.is_own(authority) {
            return String::new();
        }
        format!("https://{authority}{}", parts.uri.path())
    }

    /// True for a name of this server, with a port or without. Which port clients see, a server behind a proxy does not know.
    pub(super) fn is_own(&self, authority: &str) -> bool {
        let name = match authority.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => authority,
        };
        self.identity.is_named(name) || self.hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
    }

    /// What is known of a call beside who asks for what.
    fn observe(
        &self,
        principal: &Principal,
        (resource, bytes): (&Resource, u64),
        peer: &Peer,
        habit: &Habit,
        now: SystemTime,
    ) -> Observed {
        let (hour, weekday) = Observed::hour_and_weekday(now);
        let source = Some(peer.address.ip());
        let age = principal.since().and_then(|since| now.duration_since(since).ok());
        let attested_age = age.filter(|_| principal.strength == edgeward_trust::Strength::Attested);
        let suspicions = resource.model().map(|model| self.suspects.suspicions(principal, model));
        let score = self.scorer.score(&Signals {
            strength: principal.strength,
            attested_age,
            posture: &[],
            source,
            hour,
            weekday,
            rate_ratio: habit.rate_ratio,
            known_for: habit.known_for,
            detectors: suspicions.as_ref().map_or(&[], |suspicions| suspicions),
        });
        let (network, site) = (self.scorer.network(source), self.site.clone());
        Observed {
            now,
            source,
            network,
            site,
            session_age: age.unwrap_or_default(),
            attested_age,
            request_bytes: bytes,
            score,
        }
    }

    /// Decides an open call again.
    pub(super) fn review(&self, principal: &Principal, asked: &Asked) -> Result<(), TrustError> {
        let Some((action, resource, bytes)) = asked.last.lock().clone() else { return Ok(()) };
        let now = SystemTime::now();
        let habit = self.familiar.look(principal, &resource, now);
        let (_, decision) = self.decide(principal, (action, &resource, bytes), &asked.peer, &habit, now);
        if decision.allowed() {
            return Ok(());
        }
        Err(TrustError::new(edgeward_trust::ErrorKind::Denied, decision.reason.to_string()))
    }

    /// Decides what somebody asks, with what is known of it.
    fn decide(
        &self,
        principal: &Principal,
        (action, resource, bytes): (Action, &Resource, u64),
        peer: &Peer,
        habit: &Habit,
        now: SystemTime,
    ) -> (Observed, Decision) {
        let observed = self.observe(principal, (resource, bytes), peer, habit, now);
        let decision = self.policies.decide(&Request { principal, action, resource }, &observed);
        (observed, decision)
    }

    /// Writes a record of a refusal; an error where it has no place.
    pub(super) async fn write(&self, record: &Record) -> Result<(), Refused> {
        self.kept(self.audit.append(record)).await
    }

    /// Makes sure of a record as far as answers wait for it; an error where it has no place.
    async fn kept(&self, appended: Result<Ticket, TrustError>) -> Result<(), Refused> {
        let written = match appended {
            Ok(ticket) => self.placed(ticket).await,
            Err(error) => Err(error),
        };
        written.map_err(|error| {
            self.counters.unavailable.fetch_add(1, Relaxed);
            // The log's state has lines of its own: whoever calls must not fill this one, too.
            tracing::debug!(%error, "a call is refused: its record has no place");
            Refused::Unavailable
        })
    }

    /// A log that takes records is not waited for, unless answers wait for the disk; one that took none last is, as the record may be one more.
    async fn placed(&self, mut ticket: Ticket) -> Result<(), TrustError> {
        if let Some(known) = ticket.known() {
            return known.map(drop);
        }
        if !self.waits_for_disk && !self.audit.is_failing() {
            return Ok(());
        }
        match tokio::time::timeout(RECORD_MAX, ticket).await {
            Ok(written) => written.map(drop),
            Err(_) => {
                let text = format!("the disk has not taken a record of the audit log for {RECORD_MAX:?}");
                Err(TrustError::new(edgeward_trust::ErrorKind::Unavailable, text))
            }
        }
    }
}

fn connection<'a>(peer: &'a Peer, method: &'a Method, url: &'a str) -> edgeward_trust::identity::Connection<'a> {
    edgeward_trust::identity::Connection { certificates: &peer.certificates, method: method.as_str(), url }
}

/// The header `DPoP`, of which there may be one (RFC 9449 section 4.3).
pub(super) fn proof(parts: &Parts) -> Result<Option<&str>, TrustError> {
    let wrong =
        || TrustError::new(edgeward_trust::ErrorKind::Unverified, "the header `DPoP` is damaged or there twice");
    let mut values = parts.headers.get_all("dpop").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(wrong());
    }
    value.to_str().map(Some).map_err(|_| wrong())
}

impl Caller {
    /// Who it is.
    pub(super) fn principal(&self) -> &Arc<Principal> {
        &self.principal
    }

    pub(super) fn asked(&self) -> &Arc<Asked> {
        &self.asked
    }

    pub(super) fn peer(&self) -> &Arc<Peer> {
        &self.asked.peer
    }

    /// True once something was decided.
    pub(super) fn decided(&self) -> bool {
        self.decided.load(Relaxed)
    }

    /// Decides a call of `bytes`, and admits it.
    pub(crate) async fn ask(&self, action: Action, resource: Resource, bytes: u64) -> Result<Arc<Grant>, Refused> {
        let (gate, principal, now) = (&self.gate, &self.principal, SystemTime::now());
        self.decided.store(true, Relaxed);
        let habit = gate.familiar.note(principal, &resource, now);
        let (observed, decision) = gate.decide(principal, (action, &resource, bytes), self.peer(), &habit, now);
        let mut record = record::decided(principal, (action, &resource), &observed, &decision);
        record.digests.extend(self.token.map(|token| ("token".to_owned(), token)));
        if !decision.allowed() {
            gate.counters.denied.fetch_add(1, Relaxed);
            tracing::info!(principal = principal.id, %action, %resource, reason = record.reason, "denied");
            gate.write(&record).await?;
            return Err(Refused::Denied);
        }
        let model = resource.model().unwrap_or(&resource.id);
        let demand = Demand { principal: &principal.id, model, request_bytes: bytes, compute: Duration::ZERO };
        let permit = match gate.admission.admit(&demand, &decision.terms.limits, now) {
            Ok(permit) => permit,
            Err(refusal) => return Err(self.limited(record, &refusal).await),
        };
        let suspect = matches!(action, Action::Infer | Action::Stream).then(|| gate.suspects.suspect(principal, model));
        *self.asked.last.lock() = Some((action, resource, bytes));
        let pending = Pending { record: Some(record), permit: Some(permit), ..Pending::default() };
        let (gate, terms, principal) = (gate.clone(), decision.terms, principal.clone());
        let asked = self.asked.clone();
        Ok(Arc::new(Grant {
            gate,
            terms,
            larger: OnceLock::new(),
            principal,
            asked,
            suspect,
            pending: Mutex::new(pending),
        }))
    }

    /// The same before the message is there that asks: its handler has the grant by [`allow`].
    pub(crate) async fn ask_ahead(&self, action: Action, resource: Resource, bytes: u64) -> Result<(), Refused> {
        let grant = self.ask(action, resource.clone(), bytes).await?;
        self.ahead.put((action, resource, bytes), grant);
        Ok(())
    }

    /// Counts what is held of its messages.
    pub(crate) fn holds(&self) -> Held {
        Held::new(self.gate.clone(), self.peer().clone())
    }

    async fn limited(&self, mut record: Record, refusal: &Refusal) -> Refused {
        self.gate.counters.limited.fetch_add(1, Relaxed);
        limited(&mut record, refusal);
        match self.gate.write(&record).await {
            Ok(()) => Refused::Limited(refusal.retry_after),
            Err(refused) => refused,
        }
    }
}

impl Grant {
    /// Bounds a request as the terms say, and charges its rows: each is a query. A model that takes one input at a time has one row.
    pub(crate) fn prepare(&self, request: &mut InferRequest, server: &Server) -> Result<(), ServeError> {
        let limits = &self.terms().limits;
        let bytes = request.inputs.iter().map(|(_, tensor)| tensor.byte_len()).sum();
        self.pending.lock().read = Some(bytes);
        if !limits.query_budgets.is_empty() || limits.rate.is_some() {
            let more = u32::try_from(rows(request, server).saturating_sub(1)).unwrap_or(u32::MAX);
            let mut pending = self.pending.lock();
            if let Some(Err(refusal)) =
                pending.permit.as_ref().map(|permit| permit.more(more, limits, SystemTime::now()))
            {
                self.gate.counters.limited.fetch_add(1, Relaxed);
                pending.record.iter_mut().for_each(|record| limited(record, &refusal));
                let text = Refused::Limited(refusal.retry_after).text();
                let retry_after = refusal.retry_after;
                return Err(ServeError { retry_after, ..ServeError::new(ServeErrorKind::Overloaded, text) });
            }
        }
        // All is decided: the record is written beside the work.
        let mut pending = self.pending.lock();
        pending.write(&self.gate);
        if let Some(suspect) = &self.suspect {
            self.gate.suspects.asked(suspect, request);
        }
        request.timeout = request.timeout.into_iter().chain(self.terms().limits.compute_per_request).min();
        pending.classes = harden::prepare(&self.terms().obligations, request);
        Ok(())
    }

    fn terms(&self) -> &Terms {
        self.larger.get().unwrap_or(&self.terms)
    }

    /// The most bytes that the call may have, where its terms say so.
    pub(crate) fn bytes_max(&self) -> Option<u64> {
        self.terms().limits.request_bytes
    }

    /// The call has so many bytes, as they came or after they were decompressed: where it was said to have fewer, or nothing was said, all
    /// that looks at the size is asked once more.
    pub(crate) fn measured(&self, bytes: u64) -> Result<(), Refused> {
        let asked = self.asked.last.lock().clone();
        asked.map_or(Ok(()), |asked| self.measured_of(asked, bytes))
    }

    /// The same of a call among several: what it asked for, and how many bytes that was said to have.
    fn measured_of(&self, (action, resource, said): (Action, Resource, u64), bytes: u64) -> Result<(), Refused> {
        if bytes <= said {
            return Ok(());
        }
        let (gate, now) = (&self.gate, SystemTime::now());
        let habit = gate.familiar.look(&self.principal, &resource, now);
        let asked = (action, &resource, bytes);
        let (observed, decision) = gate.decide(&self.principal, asked, &self.asked.peer, &habit, now);
        let mut record = record::decided(&self.principal, (action, &resource), &observed, &decision);
        // The first terms were of what was said to be smaller: the stricter of both hold.
        let _ = self.larger.set(self.terms.strictest(&decision.terms));
        let too_large = self.bytes_max().filter(|max| bytes > *max);
        let result = match (decision.allowed(), too_large) {
            (false, _) => {
                gate.counters.denied.fetch_add(1, Relaxed);
                Err(Refused::Denied)
            }
            (true, Some(_)) => {
                gate.counters.limited.fetch_add(1, Relaxed);
                limited(&mut record, &Refusal { limit: Limit::RequestBytes, retry_after: None });
                Err(Refused::Limited(None))
            }
            (true, None) => Ok(()),
        };
        let mut pending = self.pending.lock();
        if let Some(before) = pending.record.replace(record) {
            pending.record.iter_mut().for_each(|record| record.digests.extend(before.digests.clone()));
        }
        *self.asked.last.lock() = Some((action, resource, bytes));
        result
    }

    /// Adds to the record what the call is about, beside its resource.
    pub(super) fn tell(&self, what: &str, text: impl Into<String>) {
        if let Some(record) = &mut self.pending.lock().record {
            record.context.insert(what.to_owned(), text.into());
        }
    }

    /// True for an act of an administrator: it stands in the log before it is carried out.
    pub(super) fn is_act(&self) -> bool {
        self.pending.lock().record.as_ref().is_some_and(|record| record.kind == Kind::Admin)
    }

    /// Adds the digest of a body to the record, where it is short enough.
    pub(crate) fn body<'a>(&self, parts: impl Iterator<Item = &'a [u8]> + Clone) {
        let length: usize = parts.clone().map(<[u8]>::len).sum();
        let digest = (length as u64 <= self.gate.digest_bytes_max).then(|| digest(parts));
        let mut pending = self.pending.lock();
        if let (Some(record), Some(digest)) = (&mut pending.record, digest) {
            record.digests.insert("request".to_owned(), digest);
        }
    }

    /// The request could be decoded, but is none that the model takes.
    pub(crate) fn unfit(&self) {
        self.pending.lock().read = None;
    }

    /// Charges what was computed, and changes the outputs as the terms say.
    pub(crate) fn answered(&self, response: &mut InferResponse) -> Result<(), ServeError> {
        let mut pending = self.pending.lock();
        pending.computed += response.times.infer;
        if let (Some(suspect), Some(bytes)) = (&self.suspect, pending.read) {
            suspect.computed(response.times.infer, bytes);
        }
        harden::harden(&self.terms().obligations, &self.principal.id, &pending.classes, response)
    }

    /// Writes the record, where that is not done, and waits for it as far as answers do.
    pub(crate) async fn recorded(&self) -> Result<(), Refused> {
        let ticket = {
            let mut pending = self.pending.lock();
            pending.write(&self.gate);
            pending.ticket.take()
        };
        match ticket {
            Some(appended) => self.gate.kept(appended).await,
            None => Ok(()),
        }
    }
}

/// Turns the record of what was permitted into that of a refusal for what has been used.
fn limited(record: &mut Record, refusal: &Refusal) {
    record.decision = Verdict::Deny;
    record.reason = refusal.to_string();
    record.context.insert(LIMIT.to_owned(), format!("{:?}", refusal.limit));
}

/// Rows of a request: the first dimension of its inputs, where the model leaves that open.
fn rows(request: &InferRequest, server: &Server) -> usize {
    let Ok(version) = server.version(&request.model) else { return 1 };
    let open = |name: &str| {
        let input = version.inputs().iter().find(|input| input.name == name);
        let first = input.and_then(|input| input.shape.as_ref()).and_then(|shape| shape.first());
        !matches!(first, Some(Dim::Fixed(_)))
    };
    let inputs = request.inputs.iter().filter(|(name, _)| open(name));
    inputs.filter_map(|(_, tensor)| tensor.shape().first().copied()).max().unwrap_or(1)
}

impl Pending {
    fn write(&mut self, gate: &Gate) {
        if let Some(record) = self.record.take() {
            gate.counters.allowed.fetch_add(u64::from(record.decision == Verdict::Allow), Relaxed);
            self.ticket = Some(gate.audit.append(&record));
        }
    }
}

impl Drop for Grant {
    /// A call that ended early was decided all the same.
    fn drop(&mut self) {
        let pending = self.pending.get_mut();
        pending.write(&self.gate);
        if let Some(permit) = pending.permit.take() {
            permit.finish(pending.computed);
        }
        if let Some(suspect) = &self.suspect {
            suspect.read(pending.read.is_some());
        }
    }
}

/// One digest over all parts.
fn digest<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Sha256Digest {
    use sha2::Digest as _;
    let mut hash = sha2::Sha256::new();
    parts.for_each(|part| hash.update(part));
    Sha256Digest::from(<[u8; 32]>::from(hash.finalize()))
}

/// Asks for a call whose message names what it is about. Nothing is asked where nobody has to be.
pub(crate) async fn allow(
    app: &App,
    extensions: &http::Extensions,
    action: Action,
    resource: impl FnOnce() -> Resource,
    bytes: usize,
) -> Result<Option<Arc<Grant>>, Refused> {
    if app.gate.is_none() {
        return Ok(None);
    }
    // Without a caller the call went past the gate: that must not be answered.
    let caller = extensions.get::<Arc<Caller>>().ok_or(Refused::Unavailable)?;
    let resource = resource();
    match caller.ahead.take(action, &resource) {
        Some((said, grant)) => {
            grant.measured_of((action, resource, said), bytes as u64)?;
            Ok(Some(grant))
        }
        None => caller.ask(action, resource, bytes as u64).await.map(Some),
    }
}
