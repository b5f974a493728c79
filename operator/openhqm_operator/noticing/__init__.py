"""What has changed, and whose AsyncProxy that concerns: kopf's word and our own watches."""
