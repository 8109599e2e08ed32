//! The client's side of SOCKS5 (RFC 1928), CONNECT without authentication: what is said, and what the answers mean.

use std::net::SocketAddr;

/// The greeting: version 5, one method, no authentication.
pub const GREETING: [u8; 3] = [5, 1, 0];

/// The longest reply: a name of 255 bytes.
pub const REPLY_MAX: usize = 4 + 1 + 255 + 2;

/// The request to connect to `to`.
#[must_use]
pub fn request(to: SocketAddr) -> Vec<u8> {
    let mut out = vec![5, 1, 0];
    match to {
        SocketAddr::V4(v4) => {
            out.push(1);
            out.extend_from_slice(&v4.ip().octets());
        }
        SocketAddr::V6(v6) => {
            out.push(4);
            out.extend_from_slice(&v6.ip().octets());
        }
    }
    out.extend_from_slice(&to.port().to_be_bytes());
    out
}

/// Whether the proxy takes us without authentication.
///
/// # Errors
/// When it does not.
pub fn method(answer: [u8; 2]) -> Result<(), String> {
    match answer {
        [5, 0] => Ok(()),
        [5, 0xff] => Err("the proxy wants authentication".to_owned()),
        [version, method] => Err(format!("the proxy answers the greeting with {version:#04x} {method:#04x}: expected 0x05 0x00")),
    }
}

/// How many bytes of a reply are still to come, of which the first five are here.
///
/// # Errors
/// When the proxy refuses, or speaks something else.
pub fn reply_rest(first: [u8; 5]) -> Result<usize, String> {
    match first {
        [5, 0, _, 1, _] => Ok(4 + 2 - 1),
        [5, 0, _, 4, _] => Ok(16 + 2 - 1),
        [5, 0, _, 3, name] => Ok(usize::from(name) + 2),
        [5, 0, _, kind, _] => Err(format!("the proxy replies with address type {kind:#04x}")),
        [5, code, ..] => Err(format!("the proxy refuses: {}", refusal(code))),
        [version, ..] => Err(format!("the proxy replies with version {version}: expected 5")),
    }
}

fn refusal(code: u8) -> String {
    let words = match code {
        1 => "general failure",
        2 => "not allowed",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "time to live expired",
        7 => "command not supported",
        8 => "address type not supported",
        _ => "unknown code",
    };
    format!("{words} ({code:#04x})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_those_of_the_rfc() {
        assert_eq!(request("127.0.1.2:8080".parse().unwrap()), [5, 1, 0, 1, 127, 0, 1, 2, 0x1f, 0x90]);
        let v6 = request("[::1]:443".parse().unwrap());
        assert_eq!((v6.len(), &v6[..4], &v6[19..]), (22, &[5, 1, 0, 4][..], &[1, 1, 0xbb][..]));
    }

    #[test]
    fn replies_say_how_long_they_are_or_why_not() {
        assert_eq!(reply_rest([5, 0, 0, 1, 9]), Ok(5));
        assert_eq!(reply_rest([5, 0, 0, 4, 9]), Ok(17));
        assert_eq!(reply_rest([5, 0, 0, 3, 9]), Ok(11));
        assert_eq!(reply_rest([5, 5, 0, 1, 0]), Err("the proxy refuses: connection refused (0x05)".to_owned()));
        assert!(reply_rest([4, 0, 0, 1, 0]).is_err());
        assert!(method([5, 2]).is_err());
    }
}
