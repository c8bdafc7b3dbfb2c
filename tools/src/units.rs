//! Sizes and times as people write them on a command line.

/// Bytes, such as `10GiB`; a number alone counts bytes.
///
/// # Errors
/// What is wrong, for people.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" | "K" | "k" => 10,
        "MiB" | "M" => 20,
        "GiB" | "G" => 30,
        "TiB" | "T" => 40,
        _ => return Err(format!("\"{unit}\" is no unit; use KiB, MiB, GiB or TiB")),
    };
    let number: u64 = number.parse().map_err(|_| format!("\"{text}\" does not begin with a number"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("\"{text}\" is too much"))
}

/// Bytes of one block, such as `64KiB`.
///
/// # Errors
/// What is wrong, for people.
pub fn block_bytes(text: &str) -> Result<u32, String> {
    u32::try_from(bytes(text)?).map_err(|_| format!("\"{text}\" is too much for a block"))
}

/// Seconds, such as `90s` or `12h`; a number alone is nothing.
///
/// # Errors
/// What is wrong, for people.
pub fn seconds(text: &str) -> Result<u32, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(format!("\"{text}\" has no unit; use s, m, h or d, such as 12h")),
    };
    let number: u32 = number.parse().map_err(|_| format!("\"{text}\" does not begin with a number"))?;
    number.checked_mul(factor).ok_or_else(|| format!("\"{text}\" is too much"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes("10GiB"), Ok(10 << 30));
        assert_eq!(bytes("512"), Ok(512));
        assert!(bytes("10GB").unwrap_err().contains("\"GB\" is no unit"));
        assert!(bytes("99999999999TiB").is_err());
        assert_eq!(block_bytes("16KiB"), Ok(16 << 10));
        assert_eq!(block_bytes("4294983680"), Err("\"4294983680\" is too much for a block".into()));
        assert_eq!(seconds("12h"), Ok(43_200));
        assert!(seconds("12").unwrap_err().contains("has no unit"));
        assert!(seconds("99999d").is_err());
    }
}
