//! Fixed newstyle negotiation: bytes in, bytes out, until the client has chosen an export or goes away.

use super::{
    ExportInfo,
    protocol::{ALLOCATION_CONTEXT, REQUEST_SIZE_MAX, ReplyStyle},
};

/// What the server says first.
pub const GREETING: [u8; 18] = *b"NBDMAGICIHAVEOPT\0\x03";

const OPTION_MAGIC: [u8; 8] = *b"IHAVEOPT";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Longest option in bytes; a longer one is refused and skipped.
const OPTION_SIZE_MAX: usize = 8 << 10;
/// A client that has sent so many options without an end is cut off.
const OPTION_COUNT_MAX: u32 = 128;
/// More than this is not skipped either.
const SKIP_SIZE_MAX: usize = 1 << 20;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_LIST_META_CONTEXT: u32 = 9;
const OPT_SET_META_CONTEXT: u32 = 10;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
const REP_ERR_INVALID: u32 = (1 << 31) + 3;
const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
const REP_ERR_TOO_BIG: u32 = (1 << 31) + 9;

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_DESCRIPTION: u16 = 2;
const INFO_BLOCK_SIZE: u16 = 3;

const ALLOCATION: &str = "base:allocation";

/// Where the negotiation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes are needed.
    More,
    /// The client has chosen: transmission begins.
    Go {
        /// The export's name as the client said it.
        name: String,
        /// How it wants replies.
        style: ReplyStyle,
    },
    /// The client goes, or must go.
    End,
}

/// What the negotiation needs to know of the exports.
pub trait Catalog {
    /// All of them.
    fn list(&self) -> Vec<ExportInfo>;
    /// One of them.
    fn find(&self, name: &str) -> Option<ExportInfo>;
}

/// The state of a negotiation.
#[derive(Debug, Default)]
pub struct Handshake {
    flags: Option<u32>,
    style: ReplyStyle,
    /// The export for which the allocation context was chosen.
    context_for: Option<String>,
    options: u32,
    skip: usize,
}

impl Handshake {
    /// Takes as much as it can from the front of `input` and puts answers into `output`.
    pub fn advance(&mut self, input: &mut Vec<u8>, catalog: &impl Catalog, output: &mut Vec<u8>) -> Step {
        loop {
            let skipped = self.skip.min(input.len());
            input.drain(..skipped);
            self.skip -= skipped;
            if self.skip > 0 {
                return Step::More;
            }
            if self.flags.is_none() {
                let Some(flags) = input.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)) else {
                    return Step::More;
                };
                input.drain(..4);
                // Fixed newstyle is the only style this server has; other bits are not known to it.
                if flags & 1 == 0 || flags & !3 != 0 {
                    return Step::End;
                }
                self.flags = Some(flags);
                continue;
            }
            let Some(head) = input.first_chunk::<16>().copied() else {
                return Step::More;
            };
            let [magic @ .., o0, o1, o2, o3, s0, s1, s2, s3] = head;
            if magic != OPTION_MAGIC {
                return Step::End;
            }
            let option = u32::from_be_bytes([o0, o1, o2, o3]);
            let size = u32::from_be_bytes([s0, s1, s2, s3]) as usize;
            self.options += 1;
            if self.options > OPTION_COUNT_MAX || size > SKIP_SIZE_MAX {
                return Step::End;
            }
            if size > OPTION_SIZE_MAX {
                input.drain(..16);
                self.skip = size;
                if option == OPT_EXPORT_NAME {
                    return Step::End;
                }
                reply(output, option, REP_ERR_TOO_BIG, b"The option is too long");
                continue;
            }
            let Some(data) = input.get(16..16 + size).map(<[u8]>::to_vec) else {
                // The same option is looked at again when it is whole.
                self.options -= 1;
                return Step::More;
            };
            input.drain(..16 + size);
            match self.option(option, &data, catalog, output) {
                Step::More => {}
                step => return step,
            }
        }
    }

    fn option(&mut self, option: u32, data: &[u8], catalog: &impl Catalog, output: &mut Vec<u8>) -> Step {
        match option {
            OPT_EXPORT_NAME => return self.export_name(data, catalog, output),
            OPT_ABORT => {
                reply(output, option, REP_ACK, b"");
                return Step::End;
            }
            OPT_LIST if data.is_empty() => {
                for info in catalog.list() {
                    let mut text = (info.name.len() as u32).to_be_bytes().to_vec();
                    text.extend_from_slice(info.name.as_bytes());
                    text.extend_from_slice(info.description.as_bytes());
                    reply(output, option, REP_SERVER, &text);
                }
                reply(output, option, REP_ACK, b"");
            }
            OPT_STRUCTURED_REPLY if data.is_empty() => {
                self.style.structured = true;
                reply(output, option, REP_ACK, b"");
            }
            OPT_INFO | OPT_GO => return self.info(option, data, catalog, output),
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => self.contexts(option, data, catalog, output),
            OPT_LIST | OPT_STRUCTURED_REPLY => {
                reply(output, option, REP_ERR_INVALID, b"The option has no data");
            }
            _ => reply(output, option, REP_ERR_UNSUP, b"The option is not known"),
        }
        Step::More
    }

    fn export_name(&mut self, data: &[u8], catalog: &impl Catalog, output: &mut Vec<u8>) -> Step {
        let name = String::from_utf8_lossy(data).into_owned();
        // This option has no way to say no but to hang up.
        let Some(info) = catalog.find(&name) else {
            return Step::End;
        };
        output.extend_from_slice(&info.size.to_be_bytes());
        output.extend_from_slice(&transmission_flags(&info, self.style).to_be_bytes());
        if self.flags.unwrap_or_default() & 2 == 0 {
            output.extend_from_slice(&[0; 124]);
        }
        Step::Go { name, style: self.style }
    }

    fn info(&mut self, option: u32, data: &[u8], catalog: &impl Catalog, output: &mut Vec<u8>) -> Step {
        let Some((name, rest)) = text(data) else {
            reply(output, option, REP_ERR_INVALID, b"The option is cut short");
            return Step::More;
        };
        let wanted =
            rest.split_first_chunk().filter(|(count, rest)| rest.len() == 2 * usize::from(u16::from_be_bytes(**count)));
        let Some((_, wanted)) = wanted else {
            reply(output, option, REP_ERR_INVALID, b"The option is cut short");
            return Step::More;
        };
        let Some(info) = catalog.find(&name) else {
            reply(output, option, REP_ERR_UNKNOWN, format!("There is no export \"{name}\"").as_bytes());
            return Step::More;
        };
        if self.context_for.as_ref() != Some(&name) {
            self.style.allocation = false;
        }
        let mut export = INFO_EXPORT.to_be_bytes().to_vec();
        export.extend_from_slice(&info.size.to_be_bytes());
        export.extend_from_slice(&transmission_flags(&info, self.style).to_be_bytes());
        reply(output, option, REP_INFO, &export);
        for kind in wanted.chunks_exact(2).map(|kind| u16::from_be_bytes([kind[0], kind[1]])) {
            let text = match kind {
                INFO_NAME => info.name.as_bytes(),
                INFO_DESCRIPTION => info.description.as_bytes(),
                _ => continue,
            };
            reply(output, option, REP_INFO, &[&kind.to_be_bytes()[..], text].concat());
        }
        let mut sizes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [info.logical_block_size, info.preferred_block_size, REQUEST_SIZE_MAX] {
            sizes.extend_from_slice(&size.to_be_bytes());
        }
        reply(output, option, REP_INFO, &sizes);
        reply(output, option, REP_ACK, b"");
        if option == OPT_GO { Step::Go { name, style: self.style } } else { Step::More }
    }

    fn contexts(&mut self, option: u32, data: &[u8], catalog: &impl Catalog, output: &mut Vec<u8>) {
        if option == OPT_SET_META_CONTEXT {
            (self.style.allocation, self.context_for) = (false, None);
        }
        if !self.style.structured {
            return reply(output, option, REP_ERR_INVALID, b"Structured replies come first");
        }
        let Some((name, queries)) = text(data).and_then(|(name, rest)| Some((name, queries(rest)?))) else {
            return reply(output, option, REP_ERR_INVALID, b"The option is cut short");
        };
        if catalog.find(&name).is_none() {
            return reply(output, option, REP_ERR_UNKNOWN, b"There is no such export");
        }
        let lists = option == OPT_LIST_META_CONTEXT;
        let chosen = queries.iter().any(|query| query == ALLOCATION || (lists && query == "base:"));
        if chosen || (lists && queries.is_empty()) {
            let number = if lists { 0 } else { ALLOCATION_CONTEXT };
            let answer = [&number.to_be_bytes()[..], ALLOCATION.as_bytes()].concat();
            reply(output, option, REP_META_CONTEXT, &answer);
            if !lists {
                self.style.allocation = true;
                self.context_for = Some(name);
            }
        }
        reply(output, option, REP_ACK, b"");
    }
}

fn text(data: &[u8]) -> Option<(String, &[u8])> {
    let (size, rest) = data.split_first_chunk::<4>()?;
    let (text, rest) = rest.split_at_checked(u32::from_be_bytes(*size) as usize)?;
    Some((String::from_utf8(text.to_vec()).ok()?, rest))
}

fn queries(data: &[u8]) -> Option<Vec<String>> {
    let (count, mut rest) = data.split_first_chunk::<4>()?;
    let mut queries = Vec::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let (query, after) = text(rest)?;
        queries.push(query);
        rest = after;
    }
    rest.is_empty().then_some(queries)
}

fn reply(output: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    output.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
    output.extend_from_slice(&option.to_be_bytes());
    output.extend_from_slice(&kind.to_be_bytes());
    output.extend_from_slice(&(data.len() as u32).to_be_bytes());
    output.extend_from_slice(data);
}

fn transmission_flags(info: &ExportInfo, style: ReplyStyle) -> u16 {
    // HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN, SEND_FAST_ZERO.
    let mut flags = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 11;
    if info.read_only {
        flags |= 1 << 1;
    }
    if style.structured {
        flags |= 1 << 7;
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct One;

    impl Catalog for One {
        fn list(&self) -> Vec<ExportInfo> {
            self.find("v").into_iter().collect()
        }

        fn find(&self, name: &str) -> Option<ExportInfo> {
            (name == "v").then(|| ExportInfo {
                name: "v".into(),
                description: "d".into(),
                size: 1 << 20,
                logical_block_size: 512,
                preferred_block_size: 4096,
                read_only: false,
            })
        }
    }

    fn option(number: u32, data: &[u8]) -> Vec<u8> {
        [&OPTION_MAGIC[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
    }

    fn run(parts: &[Vec<u8>]) -> (Step, Vec<u8>) {
        let (mut handshake, mut output) = (Handshake::default(), Vec::new());
        let mut input = [vec![0, 0, 0, 3], parts.concat()].concat();
        (handshake.advance(&mut input, &One, &mut output), output)
    }

    #[test]
    fn go_tells_size_flags_and_block_sizes() {
        let (step, output) = run(&[option(8, b""), option(7, b"\0\0\0\x01v\0\0")]);
        let style = ReplyStyle { structured: true, allocation: false };
        assert_eq!(step, Step::Go { name: "v".into(), style });
        // Acknowledgement of option 8, then the export, then the block sizes, then the acknowledgement.
        assert_eq!(output[20..40], *b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0c");
        assert_eq!(output[40..52], *b"\0\0\0\0\0\0\0\x10\0\0\x09\xed");
        assert_eq!(output[72..86], *b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0");
    }

    #[test]
    fn an_unknown_export_is_refused_by_name() {
        let (step, output) = run(&[option(7, b"\0\0\0\x01w\0\0")]);
        assert_eq!(step, Step::More);
        assert_eq!(output[12..16], REP_ERR_UNKNOWN.to_be_bytes());
        assert_eq!(&output[20..], b"There is no export \"w\"");
    }

    #[test]
    fn the_allocation_context_needs_structured_replies() {
        let query = b"\0\0\0\x01v\0\0\0\x01\0\0\0\x0fbase:allocation";
        let (_, output) = run(&[option(10, query)]);
        assert_eq!(output[12..16], REP_ERR_INVALID.to_be_bytes());
        let (step, _) = run(&[option(8, b""), option(10, query), option(7, b"\0\0\0\x01v\0\0")]);
        let style = ReplyStyle { structured: true, allocation: true };
        assert_eq!(step, Step::Go { name: "v".into(), style });
    }

    #[test]
    fn a_long_option_is_skipped_and_the_client_goes_on() {
        let (step, output) = run(&[option(77, &[0; 9000]), option(2, b"")]);
        assert_eq!(step, Step::End);
        assert_eq!(output[12..16], REP_ERR_TOO_BIG.to_be_bytes());
    }

    proptest! {
        #[test]
        fn random_bytes_end_or_wait(bytes in prop::collection::vec(any::<u8>(), 0..200), number in 0u32..14, data in prop::collection::vec(any::<u8>(), 0..60)) {
            for parts in [vec![bytes.clone()], vec![option(number, &data)], vec![option(8, b""), option(number, &data)]] {
                let (_, output) = run(&parts);
                prop_assert!(output.len() < 4096);
            }
        }
    }
}
