//! The id of a volume: the slot of its disk, and the end of its subsystem's NQN.

use crate::text::checked_text;

checked_text!(
    /// A volume: the RDS disk's slot, and the last part of its subsystem NQN.
    ///
    /// 1 to 63 of `a-z 0-9 -`, beginning and ending with a letter or digit (a DNS label, RFC 1123), so that it
    /// can stand in a slot, in a file name and in an NQN alike.
    VolumeId,
    "volume id",
    label,
    "use 1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends"
);

fn label(value: &str) -> Result<(), &'static str> {
    if value.is_empty() {
        return Err("is empty");
    }
    if value.len() > 63 {
        return Err("is longer than 63 characters");
    }
    if !value.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        return Err("has a character that is not one of a-z, 0-9 and -");
    }
    if value.starts_with('-') || value.ends_with('-') {
        return Err("does not begin and end with a letter or digit");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_lead_out_of_a_directory_or_an_nqn_is_refused() {
        for good in ["pvc-0a1b", "a", "0", &"x".repeat(63)] {
            assert!(VolumeId::new(good).is_ok(), "{good}");
        }
        for bad in
            ["", "Pvc", "a/b", "../x", ".", "-a", "a-", "a b", "a,b", "a:b", "a\n", "é", &"x".repeat(64)]
        {
            let error = VolumeId::new(bad).expect_err(bad);
            assert_eq!((error.what, error.value.as_str()), ("volume id", bad));
            assert!(error.to_string().contains("use 1 to 63"), "{error}");
        }
    }
}
