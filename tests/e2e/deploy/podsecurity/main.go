// Says what Kubernetes' own Pod Security admission has against a pod: `podsecurity LEVEL <pod.json`, one finding a line.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

func main() {
	level, err := api.ParseLevel(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	var pod corev1.PodTemplateSpec
	if err := json.NewDecoder(os.Stdin).Decode(&pod); err != nil {
		log.Fatal(err)
	}
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		log.Fatal(err)
	}
	asked := api.LevelVersion{Level: level, Version: api.LatestVersion()}
	for _, result := range evaluator.EvaluatePod(asked, &pod.ObjectMeta, &pod.Spec) {
		if !result.Allowed {
			fmt.Println(result.ForbiddenReason+":", result.ForbiddenDetail)
		}
	}
}
