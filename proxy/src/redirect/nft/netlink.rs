//! One nf_tables transaction over a netlink socket, on the calling thread's network namespace.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
            setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike},
    },
};

use super::{
    Table,
    encode::{self, Request},
};

/// Why the kernel's rules could not be changed. They are then as before: a transaction takes
/// effect as a whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NftError {
    /// The process may not.
    #[error(
        "cannot write {what}: permission denied; needs CAP_NET_ADMIN in the pod's network namespace"
    )]
    Permission {
        /// Table, chain or rule.
        what: String,
    },
    /// The kernel has no such thing.
    #[error(
        "cannot write {what}: not available in this kernel ({errno}); load modules nf_tables, \
         nft_chain_nat, nft_redir, nft_nat, nft_masq, nft_reject_inet, nft_numgen (Linux 5.2 or later)"
    )]
    Unsupported {
        /// Table, chain or rule.
        what: String,
        /// The kernel's word.
        errno: Errno,
    },
    /// The transaction does not fit into a netlink message.
    #[error(
        "cannot write {what}: {len} bytes of rules are more than the socket takes; raise sysctl \
         net.core.wmem_max to {len} or more"
    )]
    TooLarge {
        /// The table.
        what: String,
        /// Length of the transaction.
        len: usize,
    },
    /// The kernel did not answer in time.
    #[error("cannot write {what}: no answer from the kernel in {ANSWER_SECONDS} s; try again")]
    NoAnswer {
        /// The table.
        what: String,
    },
    /// Anything else.
    #[error("cannot write {what}: {errno}")]
    Refused {
        /// Table, chain or rule.
        what: String,
        /// The kernel's word.
        errno: Errno,
    },
}

/// How long the kernel may take to answer.
const ANSWER_SECONDS: i64 = 10;

/// Puts the table in force in place of one of the same name, if any, at once and as a whole.
///
/// Acts on the calling thread's network namespace and blocks for the kernel's answer. Connections
/// that are established keep the translation they began with.
///
/// # Errors
/// Where the kernel refuses; the former table then stays.
pub fn replace(table: &Table) -> Result<(), NftError> {
    let mut requests = encode::delete(table.name);
    requests.extend(encode::create(table));
    transact(&requests)
}

/// Puts the table in force where there is none of its name; says whether there was none.
///
/// # Errors
/// Where the kernel refuses.
pub fn create(table: &Table) -> Result<bool, NftError> {
    let mut requests = encode::create(table);
    if let Some(first) = requests.first_mut() {
        first.flags |= NLM_F_EXCL;
    }
    match transact(&requests) {
        Ok(()) => Ok(true),
        Err(NftError::Refused { errno: Errno::EEXIST, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a table and all in it; no error where there is none.
///
/// # Errors
/// Where the kernel refuses.
pub fn remove(table: &str) -> Result<(), NftError> {
    transact(&encode::delete(table))
}

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_EXCL: u16 = 0x200;
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;
const FAMILY_INET: u8 = 1;

fn transact(requests: &[Request]) -> Result<(), NftError> {
    let what = |sequence: u32| {
        let at = (sequence as usize).saturating_sub(1).min(requests.len() - 1);
        requests[at].what.clone()
    };
    let bytes = transaction(requests);
    let socket = open(bytes.len()).map_err(|errno| refusal(what(1), errno, bytes.len()))?;
    let sent = sendto(socket.as_raw_fd(), &bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty());
    sent.map_err(|errno| refusal(what(1), errno, bytes.len()))?;
    let last = u32::try_from(requests.len()).expect("invariant: a batch fits a socket buffer");
    // The kernel reports every bad request and then, where asked, the good ones: the answer to the
    // last request ends the report, unless the batch was turned away at its first message.
    let mut first_error = None;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let len = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(len) => len,
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => return Err(NftError::NoAnswer { what: what(1) }),
            Err(errno) => return Err(refusal(what(1), errno, bytes.len())),
        };
        for (sequence, code) in answers(&buffer[..len]) {
            if code != 0 {
                first_error.get_or_insert((sequence, code));
            }
            if sequence == 0 || sequence == last {
                return first_error.map_or(Ok(()), |(sequence, code)| {
                    Err(refusal(what(sequence), Errno::from_raw(code), bytes.len()))
                });
            }
        }
    }
}

fn open(len: usize) -> nix::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    // The kernel takes a batch only in one piece, so the buffer must hold it. Beyond the system's
    // limit only the host's root may go.
    let room = len + 4096;
    if setsockopt(&socket, sockopt::SndBufForce, &room).is_err() {
        setsockopt(&socket, sockopt::SndBuf, &room)?;
    }
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))?;
    Ok(socket)
}

fn refusal(what: String, errno: Errno, len: usize) -> NftError {
    match errno {
        Errno::EPERM | Errno::EACCES => NftError::Permission { what },
        Errno::EMSGSIZE => NftError::TooLarge { what, len },
        Errno::ENOENT
        | Errno::EOPNOTSUPP
        | Errno::EPROTONOSUPPORT
        | Errno::EAFNOSUPPORT
        | Errno::ENOPROTOOPT => NftError::Unsupported { what, errno },
        errno => NftError::Refused { what, errno },
    }
}

/// The whole batch; the request at index i has sequence number i + 1, the brackets have 0.
fn transaction(requests: &[Request]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let bracket = SUBSYSTEM.to_be_bytes();
    message(&mut bytes, BATCH_BEGIN, NLM_F_REQUEST, 0, [0, 0, bracket[0], bracket[1]], &[]);
    let mut sequence = 0;
    for request in requests {
        sequence += 1;
        let ack = if sequence as usize == requests.len() { NLM_F_ACK } else { 0 };
        message(
            &mut bytes,
            SUBSYSTEM << 8 | u16::from(request.kind),
            NLM_F_REQUEST | request.flags | ack,
            sequence,
            [FAMILY_INET, 0, 0, 0],
            &request.body,
        );
    }
    message(&mut bytes, BATCH_END, NLM_F_REQUEST, 0, [0, 0, bracket[0], bracket[1]], &[]);
    bytes
}

/// `nlmsghdr`, `nfgenmsg`, attributes.
fn message(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    nfgenmsg: [u8; 4],
    body: &[u8],
) {
    let len = u32::try_from(HEADER + nfgenmsg.len() + body.len())
        .expect("invariant: a rule is far below 4 GiB");
    bytes.extend_from_slice(&len.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&nfgenmsg);
    bytes.extend_from_slice(body);
}

/// Sequence number and error (0: success) of each answer in a datagram.
fn answers(mut bytes: &[u8]) -> Vec<(u32, i32)> {
    let u32_at = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
    };
    let mut answers = Vec::new();
    while let (Some(len), Some(sequence), Some(code)) =
        (u32_at(bytes, 0), u32_at(bytes, 8), u32_at(bytes, HEADER))
    {
        if u16::from_ne_bytes([bytes[4], bytes[5]]) == NLMSG_ERROR {
            answers.push((sequence, -code.cast_signed()));
        }
        let next = (len as usize).next_multiple_of(4).max(HEADER);
        bytes = bytes.get(next..).unwrap_or_default();
    }
    answers
}
