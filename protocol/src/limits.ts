/** Every bound of Sluice, with unit and reason. Nothing that comes from outside goes without one. */

const KiB = 1024
const MiB = 1024 * KiB
const GiB = 1024 * MiB
const second = 1000
const minute = 60 * second
const hour = 60 * minute
const day = 24 * hour

export const limits = {
  // Sealed archive
  /** c2sp.org/chunked-encryption@v1: plaintext bytes of every chunk but the last, which is shorter. */
  chunkBytes: 16 * KiB,
  /** A range of a sealed object is opened in memory as one piece. */
  rangeBytesMax: 64 * MiB,
  /** S3: an object holds at most 5 TiB; a multipart upload at most 10,000 parts. */
  sealedBytesMax: 5 * 1024 * GiB,
  partsMax: 10_000,
  /** S3: every part but the last has at least 5 MiB. */
  partBytesMin: 5 * MiB,
  partBytesDefault: 16 * MiB,
  /** 10,000 of them hold the largest object. S3 allows 5 GiB, but a part is in memory for its digest. */
  partBytesMax: 528 * MiB,
  /** The manifest is parsed as one JSON value. */
  manifestBytesMax: 16 * MiB,
  mediaPerJobMax: 10_000,
  /** A result is a small document, not a copy of the media. */
  resultBytesMax: 1 * MiB,
  /** The sealed form: result, node's signature, HPKE encapsulation and tag. */
  sealedResultBytesMax: 1 * MiB + 16 * KiB,

  // Media (MEDIA.md of the gate: anchors are the limits of peers)
  imageFileBytesMax: 100 * MiB,
  audioFileBytesMax: 2 * GiB,
  videoFileBytesMax: 20 * GiB,
  imagePixelsMax: 100_000_000,
  imageSidePixelsMax: 16_384,
  /** Pages of a TIFF, each of which becomes a medium. */
  imagePagesMax: 50,
  /** Frames of an animation; a GIF of 5,000 held a decoder for half a minute. */
  imageFramesMax: 500,
  /** Pixels of all its frames or pages together. */
  imagePixelsSumMax: 250_000_000,
  /** Passes of a progressive JPEG, each of which decodes the whole picture. */
  imageScansMax: 100,
  /** One block of metadata when unpacked, such as a colour profile. */
  imageMetadataBytesMax: 16 * MiB,
  /** Items of a HEIF file: a picture of 100 megapixels in small tiles has some thousands. */
  imageItemsMax: 20_000,
  videoFramePixelsMax: 36_000_000,
  videoSidePixelsMax: 8192,
  videoDurationMsMax: 4 * hour,
  /** Pictures of a film: 4 hours at 30 a second and some. */
  videoFramesMax: 500_000,
  /** Slow motion of telephones is 240 pictures a second. */
  videoRateHzMax: 240,
  /** All pictures of a film together: an hour and more of 8K, 32 hours of full HD at 4 a second. */
  videoPixelsMax: 1e12,
  /** Boxes within boxes: real films have fewer than ten levels. */
  boxDepthMax: 32,
  audioDurationMsMax: 4 * hour,
  audioSampleRateHzMax: 192_000,
  audioChannelsMax: 8,
  tracksMax: 8,
  /** Normalised media up to this size wait for the archive in memory, larger ones in scratch. */
  mediumInMemoryBytesMax: 32 * MiB,
  decoderMemoryBytesMax: 2 * GiB,
  imageDecodeMsBase: 10 * second,
  /** Added for every megapixel that the header promises and the limits allow. */
  imageDecodeMsPerMegapixel: 300,
  imageDecoderMemoryBytesMax: 1 * GiB,
  /** A decoder works for so many pictures at most: what it leaks or keeps ends with it. */
  imagesPerDecoderMax: 250,
  /** Added to three times the duration of a film or sound. */
  avDecodeMsBase: 60 * second,

  // Watched folders
  /** Files and folders that one look goes through; each costs a call to the file system. */
  watchedEntriesMax: 100_000,
  /** Contents of watched folders that are known again; each is 150 bytes of every journal write. */
  contentsRememberedMax: 4096,

  // Scan
  /** clamd looks at nothing larger (ClamAV manual, MaxFileSize): beyond it, nobody can say clean. */
  scanBytesMax: 2 * GiB - 1,
  /** What one scan may take beside the time its bytes need; a scanner that hangs is not waited for. */
  scanMsBase: 60 * second,
  /** The slowest scan that is waited for; clamd does 30 MiB/s and more on one core. */
  scanBytesPerSecondMin: 5 * MiB,
  /** For a question to the scanner that needs no work. */
  scanAnswerMs: 10 * second,
  scanReplyBytesMax: 1 * KiB,
  /** So long a scanner that was found in order is not looked at again before a sealing begins. */
  scanCheckKeepMs: 30 * second,
  /** A scanner's configuration and rules are written by people. */
  scanConfigBytesMax: 256 * KiB,
  signatureAgeHoursDefault: 72,
  /** Infected media of this host that are remembered, by hash and reason. */
  quarantineEntriesMax: 1000,
  /** Alerts about infected media of one agent within an hour; its host has the whole list. */
  infectedAlertsPerHourMax: 20,

  // Channel
  /** One WebSocket frame: the largest is a sealed result with its message. */
  frameBytesMax: 2 * MiB,
  /** The JSON part of a frame. */
  messageBytesMax: 512 * KiB,
  /** Frames of one agent that wait to be worked off; further ones are left unread meanwhile. */
  pendingRequestsMax: 256,
  /** Bytes of those frames; a link is no place to store attachments. */
  pendingBytesMax: 16 * MiB,
  /** Job ids in one purge order: 80 KB of a message; larger scopes are several orders. */
  purgeJobsPerCommandMax: 2000,
  /** Jobs whose own events and orders are written in one transaction after a purge began. */
  purgePageJobs: 500,
  /** Events of single jobs in the transaction that locks a scope; its own event covers them all. */
  purgeEventsAtOnceMax: 500,
  /** Kept on the disk, to be freed for a purge when the disk is full. */
  purgeReserveBytes: 64 * MiB,
  /** Jobs that one person may purge within `purgeAloneMs`, unless configured. */
  purgeAloneJobsMaxDefault: 100,
  /** How long it counts what a person purged alone: many small purges are a large one. */
  purgeAloneMs: 24 * hour,
  /** Spools, and leases, in one page of an inventory. */
  inventoryEntriesMax: 1000,
  /** Frames of a link that are read, evenly and at once; faster ones wait in the network. */
  messagesPerSecondMax: 100,
  messagesBurstMax: 400,
  /** Requests of one link that are worked on at once; the others wait. */
  requestsAtOnceMax: 8,
  /** Bytes a slow reader may leave unread before its link is cut. */
  linkUnreadBytesMax: 16 * MiB,
  commandsInFlightMax: 64,
  /** How far an agent's word may move its command numbers on at once; a restore loses fewer. */
  commandSeqJumpMax: 1_000_000,
  /** How long the row of an order that is over is kept, for whoever asks what became of it. */
  commandKeepMs: 7 * day,
  /** Such rows looked at, and taken away, in one transaction. */
  commandPageRows: 500,
  heartbeatMs: 10 * second,
  /** A link silent for this long is taken for dead. */
  linkSilenceMs: 30 * second,
  requestTimeoutMs: 30 * second,
  reconnectMsMin: 250,
  reconnectMsMax: 60 * second,
  /** Clock difference between agent and control plane that is still only a warning. */
  clockSkewMsMax: 5 * minute,

  // Grants
  uploadGrantMs: 15 * minute,
  readGrantMs: 5 * minute,
  /** Parts for which one message may ask grants. */
  grantsPerRequestMax: 64,

  // Leases
  leaseMs: 60 * second,
  /** The node stops and wipes this long before the deadline it counts itself. */
  leaseWipeMarginMs: 10 * second,
  /** The control plane waits this long beyond its own deadline before it leases again. */
  leaseGraceMs: 15 * second,
  leaseAttemptsMax: 5,
  /** However faithfully a node renews: the longest analysis, and an hour for everything around it. */
  leaseTotalMsMax: 5 * hour,
  /** After a lease that came to nothing, its job waits: this long first, four times longer each time. */
  leaseRetryMsMin: 2 * second,
  leaseRetryMsMax: 60 * second,
  analysisMsMax: 4 * hour,
  analysisMsDefault: 10 * minute,
  analysisMemoryBytesDefault: 4 * GiB,

  // Identity
  joinTokenMsDefault: 10 * minute,
  joinTokenMsMax: 24 * hour,
  certificateMs: 24 * hour,
  serverCertificateMs: 90 * day,
  authorityMs: 3650 * day,
  /** Authorities trusted at once: the old one, the new one, and two that a rotation left behind. */
  authoritiesMax: 4,
  apiTokenMsMax: 400 * day,

  // Receive keys
  receiveKeysPerAgent: 256,
  receiveKeysPerMessage: 32,
  offlineMsMaxDefault: 14 * day,

  // Keeping and deleting
  failedJobKeepMsDefault: 24 * hour,
  onlyCopyKeepMs: 7 * day,
  onlyCopyNoticeMs: 24 * hour,
  resultKeepMs: 7 * day,
  resultsKeepDaysDefault: 30,
  epochRollCoalesceMs: 5 * second,
  /** A roll that nobody waits for and that failed is tried again after this. */
  keysRetryMs: 60 * second,
  /** An epoch ends at this age even when nothing was deleted: used receive keys die with it. */
  epochAgeMsMax: 1 * hour,
  /** Wrapped keys in one message to the key process and in one transaction of a roll. */
  resealPageKeys: 2000,
  keyRequestsMax: 256,
  /** Unused receive keys of one agent: some, whose supply got lost on the way, only wait to expire. */
  receiveKeysHeldMax: 1024,
  obligationRetryMsMin: 1 * second,
  obligationRetryMsMax: 10 * minute,
  /** A duty that is not settled by then is alarmed; it stays. */
  obligationOverdueMs: 24 * hour,
  /** A holder that two people gave up on is still reminded, in case it comes back. */
  writtenOffReminderMs: 24 * hour,
  /** Duties worked on at the same time. */
  obligationsInFlightMax: 16,
  /** A node wipes a finished lease by itself; only after this long it is told to. */
  wipeReminderMs: 30 * second,

  /** An approval nobody decided ends; one that was given must be used within the same time. */
  approvalMsMax: 24 * hour,
  /** Open approvals of one person: who asks for everything at once asks for nothing. */
  approvalsOpenMax: 100,

  // Upkeep
  upkeepMs: 1 * hour,
  /** After a start, hosts get this long to come back before anyone is taken for gone. */
  upkeepFirstMs: 5 * minute,

  // Sweep
  /** Jobs, or keys of a store, that are compared at once. */
  sweepPageEntries: 1000,
  /** How long agents may take to tell what lies on their hosts. */
  inventoryAnswerMs: 5 * minute,

  // Alerts
  /** Receivers that follow Standard Webhooks answer within 15 to 30 seconds. */
  alertTimeoutMs: 15 * second,
  /** What a receiver answers is read, but of no interest. */
  alertAnswerBytesMax: 64 * KiB,
  /** How long an alert that no channel was configured for waits for one. */
  alertKeepMs: 7 * day,

  // Audit sink
  /** A file system that hangs is taken for one that fails. */
  auditSinkMsMax: 30 * second,

  // HTTP API
  requestBodyBytesMax: 64 * KiB,
  pageItemsDefault: 50,
  pageItemsMax: 500,
  eventStreamsMax: 256,

  // Names and texts
  nameCharsMax: 128,
  labelCountMax: 32,
  labelCharsMax: 64,
  errorTextCharsMax: 500,
  /** An in-toto Statement in DSSE: a receipt is below 8 KiB, a certificate grows with its receipts. */
  receiptBytesMax: 32 * KiB,
  certificateBytesMax: 8 * MiB,
  /** One receipt of each agent, and a line for each job: 5,000 agents and 100,000 jobs fit. */
  purgeCertificateBytesMax: 64 * MiB,
  purgeReceiptsMax: 16_384,
  /** Jobs a purge certificate lists; of more it holds the digests, and the bundle the list. */
  purgeJobsListedMax: 100_000,
  /** Held jobs, and open duties, that a purge's document names; of all of them it has the count. */
  purgeOpenListedMax: 1000,
} as const
