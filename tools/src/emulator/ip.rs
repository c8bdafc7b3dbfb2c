//! The congestion marks (ECN, RFC 3168) in the headers of IP packets.

use link_model::Ecn;

/// What a packet's header says; nothing of one that is neither IPv4 nor IPv6.
pub(super) fn ecn(packet: &[u8]) -> Ecn {
    match packet {
        [first, class, ..] if first >> 4 == 4 => Ecn::from_bits(*class),
        // The class lies across two bytes.
        [first, class, ..] if first >> 4 == 6 => Ecn::from_bits(class >> 4),
        _ => Ecn::Absent,
    }
}

/// Writes that a packet met congestion, with the header's checksum.
pub(super) fn mark(packet: &mut [u8]) {
    match packet {
        [first, class, _, _, _, _, _, _, _, _, high, low, ..] if *first >> 4 == 4 => {
            let more = 0b11 - (*class & 0b11);
            *class |= 0b11;
            // The sum's complement: what the header has more it has less (RFC 1624, equation 3).
            let kept = !u16::from_be_bytes([*high, *low]);
            let (sum, carry) = kept.overflowing_add(more.into());
            [*high, *low] = (!(sum + u16::from(carry))).to_be_bytes();
        }
        [first, class, ..] if *first >> 4 == 6 => *class |= 0b11 << 4,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of all words is all ones if the checksum is right (RFC 1071).
    fn is_right(header: &[u8]) -> bool {
        let sum: u32 = header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        (sum & 0xffff) + (sum >> 16) == 0xffff
    }

    #[test]
    fn a_marked_header_has_the_right_checksum() {
        for ecn in [Ecn::Absent, Ecn::Capable1, Ecn::Capable0, Ecn::Experienced] {
            for identification in 0..=u16::MAX {
                let mut header =
                    [0x45, 0xb8 | ecn as u8, 0, 60, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 66, 0, 1, 10, 66, 0, 2];
                header[4..6].copy_from_slice(&identification.to_be_bytes());
                let sum: u32 = header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
                let folded = (sum & 0xffff) + (sum >> 16);
                header[10..12].copy_from_slice(&(!(((folded & 0xffff) + (folded >> 16)) as u16)).to_be_bytes());
                assert!(is_right(&header) && super::ecn(&header) == ecn);
                mark(&mut header);
                assert!(is_right(&header), "{ecn:?} {identification}");
                assert_eq!((super::ecn(&header), header[1]), (Ecn::Experienced, 0xbb));
            }
        }
    }

    #[test]
    fn the_class_of_the_newer_protocol_is_found_too_and_nothing_else_is_touched() {
        let mut header = [0x6b, 0xa5, 0x43, 0x21];
        assert_eq!(ecn(&header), Ecn::Capable0);
        mark(&mut header);
        assert_eq!((ecn(&header), header), (Ecn::Experienced, [0x6b, 0xb5, 0x43, 0x21]));
        for other in [&mut [][..], &mut [0x45], &mut [0x45, 0x02], &mut [0x15, 0x02, 7, 7]] {
            let before = other.to_vec();
            mark(other);
            assert_eq!(other, before);
        }
        assert_eq!(ecn(&[0x15, 0x02]), Ecn::Absent);
    }
}
