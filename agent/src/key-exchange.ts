/** The key exchanges this host offers, most wanted first. */

/**
 * Hybrid of ML-KEM-768 and X25519 (draft-ietf-tls-ecdhe-mlkem), then what object stores without it
 * speak. Value of `ecdhCurve` for `node:tls`.
 */
export const keyExchangeGroups = 'X25519MLKEM768:X25519:prime256v1:secp384r1'
